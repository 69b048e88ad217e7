"""One image's misfortune is its own; a thread that ends is started again, and readiness says so."""

from __future__ import annotations

import asyncio
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import featx
from featx.extraction.engine import Engine
from featx.extraction.recipe import Recipe
from featx.networks.backbone import load_network
from featx.networks.weights import weights_of
from featx.options.serving import ServeConfig
from featx.service.batching import Batcher, Overloaded
from featx.service.metrics import Metrics
from featx.service.service import Service

FC7 = ("classifier.6.weight", "classifier.6.bias")  # of alexnet-mini: BatchNorm before the last ReLU


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def photo(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, (70, 70, 3), np.uint8))


def rings() -> bytes:
    """Red and white: what excites fc7 of alexnet-mini more than any noise."""
    rows, columns = np.mgrid[:64, :64]
    red = (np.hypot(rows - 32, columns - 32) // 3 % 2).astype(bool)
    return png(np.where(red[..., None], (255, 0, 0), (255, 255, 255)).astype(np.uint8))


def batcher(weights: str = "default", **options) -> Batcher:
    recipe = Recipe.plan(backbone="alexnet-mini", layers="fc7", device="cpu", weights=weights)
    given = {"workers": 1, "capacity": 100, "timeout_s": 10.0, "metrics": Metrics()} | options
    return Batcher(Engine(recipe), **given)


def test_an_image_whose_features_overflow_is_alone_with_it(tmp_path):
    """With weights so large that of all images one reaches infinity."""
    images = [photo(0), photo(1), rings(), photo(2)]
    with featx.Extractor("alexnet-mini", "fc7", device="cpu") as extractor:
        largest = extractor(images)["fc7"].max(axis=1).astype(float)
    assert largest[2] > 1.2 * largest[[0, 1, 3]].max()
    between = 0.95 * largest[2]
    state = load_network("alexnet-mini", weights_of("alexnet-mini", "default")).network.state_dict()
    for name in FC7:  # what is computed last before the ReLU: the scale of the whole layer
        state[name] = state[name] * (torch.finfo(torch.float32).max / between)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tmp_path / "large.safetensors")
    busy = batcher(str(tmp_path / "large.safetensors"))
    rows = [future.result(60) for future in busy.submit(images)]
    busy.close()
    failed = [place for place, row in enumerate(rows) if not row.done]
    assert failed == [2]
    assert rows[2].status == "failed"
    assert "NaN or infinite" in rows[2].reason
    assert all(np.isfinite(row.features["fc7"]).all() for row in rows if row.done)


def test_a_queue_takes_what_it_holds_and_refuses_the_rest():
    busy = batcher(capacity=3)
    with pytest.raises(Overloaded, match="at most 3 may"):
        busy.submit([photo(0)] * 4)
    assert busy.waiting == 0
    rows = [future.result(60) for future in busy.submit([photo(0), b"", photo(1)])]
    assert [row.status for row in rows] == ["done", "empty", "done"]
    busy.close()
    with pytest.raises(Overloaded, match="shutting down"):
        busy.submit([photo(0)])


def test_what_was_given_up_is_not_computed():
    busy = batcher()
    futures = busy.submit([photo(seed) for seed in range(40)])
    for future in futures[20:]:
        future.cancel()
    for future in futures[:20]:
        future.result(60)
    busy.close()
    dropped = sum(future.cancelled() for future in futures)
    assert dropped > 0
    assert busy._metrics.dropped._value.get() == dropped


class Ended(BaseException):
    """What nobody expects."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_is_started_again_and_readiness_tells():
    service = Service(ServeConfig(backbone="alexnet-mini", layers="fc7", device="cpu", workers=2))
    found = service.models.default.batcher
    real, once = found._decoder.put, threading.Event()

    def put(block, place, content):
        if content == b"the end" and not once.is_set():
            once.set()
            raise Ended
        real(block, place, content)

    found._decoder.put = put
    future = found.submit([b"the end"])[0]
    with pytest.raises(Ended):
        future.result(60)
    for thread in found._threads:
        thread.join(2)
    assert sum(not thread.is_alive() for thread in found._threads) == 1
    assert "had ended and were started again" in asyncio.run(service.why_not_ready())
    service._probed = (0.0, None)
    assert asyncio.run(service.why_not_ready()) is None
    assert all(thread.is_alive() for thread in found._threads)
    assert service.metrics.restarts._value.get() == 1
    assert found.submit([b"the end"])[0].result(60).status == "not_an_image"
    service.models.close()
