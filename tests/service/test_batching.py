"""One image's misfortune is its own; a thread that ends is started again, and readiness says so."""

from __future__ import annotations

import asyncio
import io
import threading

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import save_file

import featx
from featx.errors import WeightsMismatch
from featx.extraction.engine import Engine
from featx.extraction.recipe import Recipe
from featx.networks.load import load_network
from featx.networks.weights import weights_of
from featx.options.serving import ServeConfig
from featx.service.app import make_app
from featx.service.batching import Batcher, Overloaded
from featx.service.loading import load_models
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


def test_a_network_that_cannot_be_loaded_leaves_no_threads(tmp_path):
    """And no memory: the first one is loaded by then."""
    before = threading.active_count()
    config = ServeConfig(
        backbone="alexnet-mini", layers="fc7", device="cpu", head=(f"h={head_of_other_weights(tmp_path)}",)
    )
    with pytest.raises(WeightsMismatch):
        load_models(config, Metrics())
    assert threading.active_count() == before


def head_of_other_weights(folder):
    """A head whose network's file has been changed since."""
    weights = folder / "w.safetensors"
    state = load_network("alexnet-mini", weights_of("alexnet-mini", "default")).network.state_dict()
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, weights)
    for index in range(6):
        (folder / "photos" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "photos" / "ab"[index % 2] / f"{index}.png").write_bytes(photo(index))
    plan = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", weights=str(weights), device="cpu")
    featx.extract_features(folder / "photos", folder / "f.h5", plan)
    featx.fit_svm(folder / "f.h5", folder / "h.safetensors", featx.FitConfig(c=1.0, test=0.0))
    state["classifier.8.bias"] += 1
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, weights)
    return folder / "h.safetensors"


def test_an_error_that_nobody_expects_is_a_500_in_answer_log_and_metrics(caplog):
    service = Service(ServeConfig(backbone="alexnet-mini", layers="fc7", device="cpu", workers=1))
    service.models.default.engine.pool = None  # what no request can do
    del service.models.default.layers["fc7"]
    service.models.default.layers["fc7"] = None
    with TestClient(make_app(service), raise_server_exceptions=False) as client, caplog.at_level("INFO", "featx"):
        answer = client.post("/v1/features", content=photo(0), headers={"Content-Type": "image/png"})
        assert answer.status_code == 500
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "it is in the log as" in answer.json()["detail"]
        assert 'featx_requests_total{path="/v1/features",status="500"} 1.0' in client.get("/metrics").text
    assert any('"status": 500' in record.message for record in caplog.records)
    service.models.close()


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
