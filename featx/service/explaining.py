"""Which pixels of an image decide, over HTTP: the maps of `featx show saliency`."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from featx.errors import UnknownLayer, UsageError
from featx.explain.images import last_maps
from featx.explain.saliency import saliency
from featx.explain.subject import LOGITS, Subject, subject_of
from featx.networks.pooling import Pooling
from featx.networks.run_folder import refuse_other_tasks
from featx.options.show import SALIENCY_METHODS
from featx.service.messages.answers import JSON, NPY, npy
from featx.service.messages.bodies import IMAGES
from featx.service.messages.problems import PROBLEMS, Problem, json_answer
from featx.service.models import Network
from featx.service.service import Service

PNG = "image/png"
MOST_WAITING = 8  # requests: an explanation takes up to a hundred passes through the network
_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {} for kind in (JSON, NPY, PNG)}}}


@dataclass(frozen=True)
class Explanation:
    """Of one image.

    Attributes:
        label: the class that is explained.
        taken_for: the most probable class.
        pixels: (S, S, 3) uint8, what the network sees.
        map: (S, S) float32.
    """

    label: str
    probability: float
    taken_for: str
    pixels: npt.NDArray[np.uint8]
    map: npt.NDArray[np.float32]


class Explainer:
    """Networks to differentiate, one beside each network that is served; each is loaded at its first use."""

    def __init__(self) -> None:
        self._subjects: dict[str, Subject] = {}
        # Its own: those that wait must not take the threads that encode other answers.
        self._thread = ThreadPoolExecutor(1, "explain")
        self.waiting = 0

    def submit(self, network: Network, content: bytes, method: str, target: str | None) -> Future[Explanation]:
        """Explain an image once those before it are done."""
        return self._thread.submit(self.explain, network, content, method, target)

    def explain(self, network: Network, content: bytes, method: str, target: str | None) -> Explanation:
        """What decides in one image; called by the one thread, so that memory is needed for one at a time.

        Raises:
            ImageError: the image cannot be used.
            UsageError: an unknown class; a method that does not suit the network.
        """
        subject = self._subject(network)
        pixels = subject.pixels([content])
        inputs = subject.normalised(pixels)
        with torch.inference_mode():
            scores = subject.logits(inputs)[0].double()
        best = int(scores.argmax())
        label = best if target is None else subject.class_index(target)
        found = saliency(subject, inputs, torch.tensor([label], device=subject.device), method)
        probability = float(scores.softmax(0)[label])
        classes = subject.classes
        return Explanation(classes[label], probability, classes[best], pixels[0], found.maps[0].float().cpu().numpy())

    def _subject(self, network: Network) -> Subject:
        if network.fingerprint not in self._subjects:
            served = network.engine.recipe
            refuse_other_tasks(served.backbone.name)
            layers = served.backbone.names.resolve(LOGITS)
            if maps := last_maps(served.backbone):
                layers = [*served.backbone.names.resolve(maps), *layers]
            recipe = replace(served, layers=tuple(layers), pooling=Pooling("none"), precision="fp32")
            self._subjects = {network.fingerprint: subject_of(recipe)}  # one at a time is kept
        return self._subjects[network.fingerprint]


def add_explain(app: FastAPI, service: Service) -> None:
    """The route."""
    explainer = Explainer()

    @app.post("/v1/explain", responses=_ANSWERS | PROBLEMS, openapi_extra=IMAGES, summary="Which pixels decide")
    async def explain(
        request: Request,
        method: Annotated[str, Query(pattern=f"^({'|'.join(SALIENCY_METHODS)})$")] = "gradcam",
        target: Annotated[str | None, Query(max_length=200, description="Class, by name or number.")] = None,
        model: Annotated[str | None, Query(max_length=200)] = None,
    ) -> Response:
        sent = await service.images(request)
        network = service.models.network(model)
        if len(sent) != 1:
            raise Problem(400, f"{len(sent)} images were sent; one is explained at a time")
        kind = _kind(",".join(request.headers.getlist("accept")))
        if explainer.waiting >= MOST_WAITING:
            raise Problem(429, "too many explanations are waiting; try again later", headers={"Retry-After": "5"})
        service.charge(request, 1)
        explainer.waiting += 1
        work = asyncio.wrap_future(explainer.submit(network, sent[0].content, method, target))
        work.add_done_callback(lambda _: _leave(explainer))
        try:
            found = await asyncio.wait_for(asyncio.shield(work), service.config.deadline)
        except TimeoutError:
            work.add_done_callback(lambda done: done.exception())
            raise Problem(504, f"not computed within {service.config.deadline:g} s (--deadline)") from None
        except UnknownLayer as error:
            raise UsageError(str(error)) from None
        headers = {"X-Featx-Fingerprint": network.fingerprint, "Vary": "Accept"}
        if kind == PNG:
            return Response(_png(found, method), 200, headers, PNG)
        if kind == NPY:
            return Response(npy(found.map), 200, headers, NPY)
        described = {
            "model": network.name, "fingerprint": network.fingerprint, "method": method, "class": found.label,
            "probability": found.probability, "taken_for": found.taken_for, "map": found.map,
        }  # fmt: skip
        return json_answer(described, headers)


def _leave(explainer: Explainer) -> None:
    explainer.waiting -= 1


def _kind(accept: str) -> str:
    """What to answer with: of those that are named the first, JSON where anything will do."""
    for part in accept.lower().split(","):
        name = part.split(";")[0].strip()
        if name in (PNG, NPY, JSON):
            return name
        if name == "image/*":
            return PNG
        if name in ("*/*", "application/*", ""):
            return JSON
    raise Problem(406, f"none of {accept[:100]!r} can be had; Accept may be {JSON}, {NPY}, {PNG}")


def _png(found: Explanation, method: str) -> bytes:
    """The map in colours over the image; against the class it is purple, for it orange."""
    from matplotlib import colormaps
    from PIL import Image

    from featx.figures.sheets import BOTH_SIDES, HEAT

    signed = method == "integrated"
    most = float(np.percentile(np.abs(found.map), 99)) or 1.0
    shares = np.clip(found.map / most, -1, 1)
    colours = colormaps[BOTH_SIDES if signed else HEAT]((shares + 1) / 2 if signed else np.clip(shares, 0, 1))
    mixed = 0.4 * found.pixels / 255 + 0.6 * colours[..., :3]
    out = io.BytesIO()
    Image.fromarray(np.rint(255 * mixed).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()
