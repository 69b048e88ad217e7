"""The routes: /v1, the page, documentation and metrics; other protocols are in `protocols`."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Query, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from starlette.responses import Response

from featx import __version__
from featx.analysis.nearest import METRICS
from featx.errors import UsageError
from featx.networks.pooling import parse_pooling
from featx.service.access import CLIENT_GONE, PAGE_FILES, Access
from featx.service.batching import Row
from featx.service.explaining import add_explain
from featx.service.messages.answers import ARROW, JSON, NPY, NPZ, Answer, chosen_kind, encode, refuse_large_answer
from featx.service.messages.bodies import IMAGES, Gone, Sent
from featx.service.messages.problems import PROBLEMS, Problem, add_handlers, json_answer
from featx.service.models import Classifier, Network
from featx.service.protocols.inference import add_inference_protocol
from featx.service.protocols.openai import add_embeddings
from featx.service.service import Service

MOST_NEIGHBORS = 1000
MOST_STATUSES = 64  # in a header: proxies give headers a few kilobytes
_FEATURES: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {} for kind in (JSON, NPY, NPZ, ARROW)}}}
_THUMBNAIL: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}
_HTML = "text/html; charset=utf-8"
_PAGE_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": _HTML}

Name = Annotated[str | None, Query(max_length=200)]
OnError = Annotated[
    str,
    Query(pattern="^(raise|row)$", description="One image alone that cannot be used: 422, or a row that says so."),
]


def refuse_single_failure(rows: Sequence[Row], on_error: str) -> None:
    """Raise Problem 422 where the only image of a request cannot be used, unless it is to be a row."""
    if on_error == "raise" and len(rows) == 1 and not rows[0].done:
        status = 500 if rows[0].status == "failed" else 422
        raise Problem(status, f"{rows[0].status.replace('_', ' ')}: {rows[0].reason}")


def about(name: str, row: Row) -> dict[str, Any]:
    """What every answer says of an image."""
    return {"name": name, "status": row.status, "reason": row.reason or None, "sha256": row.sha256}


def features_of(
    network: Network, layers: Sequence[str], pool: str, sent: Sequence[Sent], rows: Sequence[Row]
) -> Answer:
    """The layers of some images, pooled; NaN for those that failed."""
    pooling = parse_pooling(pool)
    values, poolings = {}, {}
    for layer in layers:
        shape = network.shape(layer, pooling)
        values[layer] = np.full((len(rows), *shape), np.nan, np.float32)
        poolings[layer] = pooling.spec if len(network.layers[layer].shape) > 1 else "none"
        for place, row in enumerate(rows):
            if row.done:
                values[layer][place] = network.pooled(row, layer, pooling)
    return Answer(network.name, network.fingerprint, [one.name for one in sent], rows, values, poolings)


def chosen_layers(network: Network, layers: str | None) -> list[str]:
    """The layers a request names; the last of -l without any."""
    if layers is None:
        return [network.default_layer]
    return list(dict.fromkeys(network.layer(name.strip()) for name in layers.split(",")))


async def refuse_unknown_parameters(request: Request) -> None:
    """A misspelt parameter must not leave the default in its place without a word.

    Raises:
        UsageError: the address has a parameter that this route does not know.
    """
    route = request.scope["route"]
    if not isinstance(route, APIRoute) or not route.path.startswith("/v1/"):
        return
    known = [parameter.alias for parameter in route.dependant.query_params]
    for name in request.query_params:
        if name not in known:
            allowed = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UsageError(f"{route.path} has no parameter {name!r}; {allowed}")


def make_app(service: Service) -> FastAPI:
    """The application."""
    app = FastAPI(
        title="featx", version=__version__, docs_url=None, redoc_url=None, description="Deep features over HTTP.",
        dependencies=[Depends(refuse_unknown_parameters)],
    )  # fmt: skip
    add_handlers(app)
    _add_images(app, service)
    add_explain(app, service)
    _add_lists(app, service)
    add_embeddings(app, service)
    add_inference_protocol(app, service)
    _add_page(app, service)
    app.add_middleware(Access, keys=lambda: service.keys, metrics=service.metrics, fingerprint=service.fingerprint)
    if service.config.allow_origin is not None:
        app.add_middleware(
            CORSMiddleware, allow_origins=[service.config.allow_origin], allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["X-Featx-Fingerprint", "X-Request-Id", "Retry-After"],
        )  # fmt: skip

    @app.exception_handler(Gone)
    def gone(_request: Request, _: Gone) -> Response:
        return Response(status_code=CLIENT_GONE)  # which nobody reads, but for the log

    return app


def _add_images(app: FastAPI, service: Service) -> None:
    @app.post("/v1/features", responses=_FEATURES | PROBLEMS, openapi_extra=IMAGES, summary="Layers of images")
    async def features(
        request: Request,
        layers: Annotated[str | None, Query(max_length=2000, description="Names, separated by commas.")] = None,
        pool: Annotated[str, Query(max_length=64, description="As --pool of featx extract.")] = "none",
        model: Name = None,
        on_error: OnError = "raise",
    ) -> Response:
        sent = await service.images(request)
        network = service.models.network(model)
        chosen = chosen_layers(network, layers)
        kind = chosen_kind(",".join(request.headers.getlist("accept")), len(chosen))
        pooling = parse_pooling(pool)
        values = sum(math.prod(network.shape(layer, pooling)) for layer in chosen)
        refuse_large_answer(4 * values * len(sent))  # before anything is computed
        rows = await service.rows(request, network, [one.content for one in sent])
        refuse_single_failure(rows, on_error)
        started = time.perf_counter()
        # Beside the loop, which has others to answer meanwhile.
        body = await asyncio.to_thread(lambda: encode(features_of(network, chosen, pool, sent, rows), kind))
        service.metrics.seconds.labels("encode").observe(time.perf_counter() - started)
        headers = {"X-Featx-Fingerprint": network.fingerprint, "Vary": "Accept"}
        if len(rows) <= MOST_STATUSES:
            headers["X-Featx-Status"] = ",".join(row.status for row in rows)
        return Response(body, 200, headers, kind)

    @app.post("/v1/predict", responses=PROBLEMS, openapi_extra=IMAGES, summary="Classes of images")
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
        head: Name = None,
        on_error: OnError = "raise",
    ) -> Response:
        sent = await service.images(request)
        classifier = service.models.classifier(head)
        if top > len(classifier.rule.classes):
            raise Problem(400, f"top is {top}; {classifier.name} has {len(classifier.rule.classes)} classes")
        rows = await service.rows(request, classifier.network, [one.content for one in sent])
        refuse_single_failure(rows, on_error)
        images = [about(one.name, row) | predicted(classifier, row, top) for one, row in zip(sent, rows, strict=True)]
        described = {"model": classifier.name, "kind": classifier.rule.kind, "fingerprint": classifier.fingerprint}
        return json_answer({**described, "images": images}, {"X-Featx-Fingerprint": classifier.fingerprint})

    @app.post("/v1/neighbors", responses=PROBLEMS, openapi_extra=IMAGES, summary="Nearest images of an index")
    async def neighbors(
        request: Request,
        k: Annotated[int, Query(ge=1, le=MOST_NEIGHBORS)] = 10,
        layer: Name = None,
        index: Name = None,
        metric: Annotated[str, Query(pattern=f"^({'|'.join(METRICS)})$")] = METRICS[0],
        on_error: OnError = "raise",
    ) -> Response:
        sent = await service.images(request)
        found = service.models.index(index)
        chosen = found.layer(layer)
        network, pooling = found.layers[chosen]
        rows = await service.rows(request, network, [one.content for one in sent])
        refuse_single_failure(rows, on_error)

        def search(row: Row) -> list[dict[str, Any]] | None:
            if not row.done:
                return None
            places, distances = found.nearest(chosen, network.pooled(row, chosen, pooling), k, metric)
            return [
                {"row": int(place), "path": found.path(int(place)), "label": found.label(int(place)),
                 "distance": float(distance), "thumbnail": f"/v1/indexes/{found.name}/images/{place}"}
                for place, distance in zip(places, distances, strict=True)
            ]  # fmt: skip

        nearest = await asyncio.to_thread(lambda: [search(row) for row in rows])
        images = [
            about(one.name, row) | {"neighbors": near} for one, row, near in zip(sent, rows, nearest, strict=True)
        ]
        described = {"index": found.name, "layer": chosen, "metric": metric, "images": images}
        return json_answer(described, {"X-Featx-Fingerprint": found.features.fingerprint})


def _add_lists(app: FastAPI, service: Service) -> None:
    @app.get("/v1/indexes/{name}/images/{row}", responses=_THUMBNAIL | PROBLEMS)
    async def thumbnail(name: str, row: int) -> Response:
        """A small picture of an image of an index."""
        found = service.models.indexes.get(name)
        if found is None or not 0 <= row < len(found.features):
            raise Problem(404, f"there is no image {row} in an index {name[:100]!r}")
        picture = await asyncio.to_thread(found.thumbnail, row)
        if picture is None:
            raise Problem(404, "the file of that image is not there any more, or cannot be read")
        return Response(picture, 200, {"Cache-Control": "max-age=3600"}, "image/jpeg")

    @app.get("/v1/models", responses=PROBLEMS)
    async def models() -> Response:
        """Everything that is loaded, in the form of OpenAI's list."""
        return json_answer(
            {"object": "list", "data": [{"object": "model", **one} for one in service.models.describe()]}
        )

    @app.get("/v1/models/{name}", responses=PROBLEMS)
    async def model(name: str) -> Response:
        """One of them: layers, shapes, preprocessing, hash of the weights, fingerprint."""
        for one in service.models.describe():
            if one["id"] == name:
                return json_answer({"object": "model", **one}, {"X-Featx-Fingerprint": one["fingerprint"]})
        known = ", ".join(one["id"] for one in service.models.describe())
        raise Problem(404, f"there is no model {name[:100]!r}; there is {known}")


def predicted(classifier: Classifier, row: Row, top: int) -> dict[str, Any]:
    """What a head says of one image; as `Predictor.predict`."""
    if not row.done:
        return {"label": None, "probability": None, "scores": None}
    scores, rule = classifier.scores(row), classifier.rule
    probabilities = rule.probabilities(scores)
    best = int(rule.predicted(scores)[0])
    order = np.argsort(-scores[0], kind="stable")[:top]
    return {
        "label": rule.names(scores)[0],
        "probability": None if probabilities is None or rule.multilabel else float(probabilities[0, best]),
        "scores": {rule.classes[i]: float(scores[0, i]) for i in order},
    }


def _add_page(app: FastAPI, service: Service) -> None:
    folder = resources.files("featx.service") / "page"
    files = {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}

    def file(name: str) -> Response:
        ending = name[name.rfind(".") :]
        return Response(files[name], 200, {"Cache-Control": "no-cache"}, _PAGE_TYPES[ending])

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return file("docs.html")

    @app.get(PAGE_FILES + "{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in files:
            raise Problem(404, f"the page has no file {name[:100]!r}")
        return file(name)

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        body, kind = service.metrics.text(request.headers.get("accept", ""))
        return Response(body, 200, {"Content-Type": kind})
