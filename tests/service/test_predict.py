"""Classes and nearest images over HTTP are those of the library."""

from __future__ import annotations

import io
import json
import threading

import numpy as np
import pytest
from conftest import write_features
from PIL import Image
from serving import form, same_bits

import featx
from featx.analysis.nearest import METRICS
from featx.runtime.threads import run_workers
from featx.service.client import _Portion
from featx.service.loading import load_models
from featx.service.metrics import Metrics
from featx.service.neighbors import Index
from featx.status import Status


@pytest.fixture(scope="module")
def photos(material):
    return sorted((material / "photos").rglob("*.jpg"))


@pytest.mark.parametrize("head", ["svm", "softmax", "pooled"])
def test_a_head_says_what_predictor_says(server, material, photos, head):
    with featx.Predictor(material / f"{head}.safetensors", device="cpu") as predictor:
        right = predictor.predict([str(photo) for photo in photos], top=3)
    body, kind = form([photo.read_bytes() for photo in photos] + [b"no image"])
    status, headers, content = server.ask("POST", f"/v1/predict?head={head}&top=3", body, Content_Type=kind)
    found = json.loads(content)
    assert status == 200, found
    assert headers["X-Featx-Fingerprint"] == found["fingerprint"] != server.about["models"][0]["fingerprint"]
    for one, expected in zip(found["images"], right, strict=False):
        assert one["label"] == expected.label
        assert list(one["scores"]) == list(expected.scores)
        np.testing.assert_allclose(list(one["scores"].values()), list(expected.scores.values()), rtol=1e-12)
        if expected.probability is None:
            assert one["probability"] is None
        else:
            assert one["probability"] == pytest.approx(expected.probability, rel=1e-12)
    last = found["images"][-1]
    assert (last["label"], last["scores"], last["status"]) == (None, None, "not_an_image")


def test_scores_do_not_depend_on_the_neighbours(server, photos):
    alone = json.loads(server.image("/v1/predict?head=softmax&top=3", photos[0].read_bytes())[2])["images"][0]
    body, kind = form([photo.read_bytes() for photo in reversed(photos)])
    among = json.loads(server.ask("POST", "/v1/predict?head=softmax&top=3", body, Content_Type=kind)[2])["images"][-1]
    assert alone["scores"] == among["scores"]
    assert alone["probability"] == among["probability"]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("", 400, "this service has the heads svm, softmax, pooled: choose one with head=NAME"),
        ("?head=none", 400, "this service has no head 'none'"),
        ("?head=svm&top=4", 400, "top is 4; svm has 3 classes"),
        ("?head=svm&top=0", 422, "top is '0': input should be greater than or equal to 1"),
        ("?head=svm&top=x", 422, "top is 'x'"),
    ],
)
def test_what_cannot_be_predicted_is_said(server, photos, query, status, said):
    found, _, body = server.image(f"/v1/predict{query}", photos[0].read_bytes())
    assert found == status
    assert said in json.loads(body)["detail"]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_images_are_those_of_all_distances(server, material, photos, metric):
    rows = np.array(featx.open_features(material / "f.h5")["fc7"], np.float64)
    if metric == "cosine":
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        distances = np.maximum(0, 1 - unit @ unit.T)
    else:
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    body, kind = form([photo.read_bytes() for photo in photos])
    path = f"/v1/neighbors?index=photos&k=5&metric={metric}"
    found = json.loads(server.ask("POST", path, body, Content_Type=kind)[2])["images"]
    paths = featx.open_features(material / "f.h5").paths
    for photo, one, own in zip(photos, found, distances, strict=True):
        row = paths.index(photo.relative_to(material / "photos").as_posix())
        right = np.argsort(distances[row], kind="stable")[:5]
        assert [near["row"] for near in one["neighbors"]] == right.tolist()
        np.testing.assert_allclose([near["distance"] for near in one["neighbors"]], distances[row][right], atol=1e-9)
        assert one["neighbors"][0]["path"] == paths[row]
        assert one["neighbors"][0]["label"] == paths[row][0]
        assert len(own) == 12


def test_images_that_failed_are_nobodys_neighbours(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    path = write_features(tmp_path / "f.h5", values, [0] * 6, ("a",), failed=(1, 4))
    index = Index("x", featx.open_features(path), {"fc7": (None, None)})
    for metric in METRICS:
        rows, distances = index.nearest("fc7", values[3], 6, metric)
        assert sorted(rows.tolist()) == [0, 2, 3, 5]
        assert rows[0] == 3
        assert np.isfinite(distances).all()


def test_an_index_of_pooled_maps_pools_the_image_that_is_sent(server, photos):
    body = server.image("/v1/neighbors?index=pooled-photos&k=1&metric=euclidean", photos[4].read_bytes())[2]
    near = json.loads(body)["images"][0]["neighbors"]
    assert len(near) == 1
    assert near[0]["distance"] == 0.0
    assert near[0]["path"].endswith(photos[4].name)


def test_thumbnails_are_small_pictures_of_the_index(server, material, photos):
    paths = featx.open_features(material / "f.h5").paths
    status, headers, body = server.ask("GET", "/v1/indexes/photos/images/3")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    small = Image.open(io.BytesIO(body))
    assert max(small.size) <= 160
    with Image.open(material / "photos" / paths[3]) as whole:
        same = np.asarray(whole.resize(small.size)).astype(int)
    assert np.abs(np.asarray(small).astype(int) - same).mean() < 6
    for path in ("photos/images/12", "photos/images/-1", "nothing/images/0", "photos/images/x"):
        assert server.ask("GET", f"/v1/indexes/{path}")[0] in (404, 422)


def test_k_is_bounded(server, photos):
    status, _, body = server.image("/v1/neighbors?index=photos&k=1000000", photos[0].read_bytes())
    assert status == 422
    assert "k is '1000000'" in json.loads(body)["detail"]


def test_a_client_is_an_extractor_and_a_predictor(server, material, photos):
    arrays = [np.asarray(Image.open(photo)) for photo in photos[:3]]
    given = [*map(str, photos), *arrays, photos[0].read_bytes()]
    with (
        featx.Client(server.url) as client,
        featx.Extractor("alexnet-mini", ["conv5", "fc7"], device="cpu") as extractor,
        featx.Predictor(material / "softmax.safetensors", device="cpu") as predictor,
    ):
        here, there = extractor(given), client(given, ["conv5", "fc7"])
        assert list(here) == list(there)
        assert all(same_bits(here[name], there[name]) for name in here)
        assert same_bits(client.transform(given[:2], ["conv5", "fc7"]), extractor.transform(given[:2]))
        mine, theirs = predictor.predict(given, top=2), client.predict(given, top=2, head="softmax")
        assert [one.label for one in mine] == [one.label for one in theirs]
        assert client.neighbors(given[0], 1, index="photos")[0][0]["path"].endswith(photos[0].name)
        assert {one["id"] for one in client.models()} >= {"svm", "photos"}


def test_a_client_says_which_image_cannot_be_used(server, photos, tmp_path):
    with featx.Client(server.url) as client:
        with pytest.raises(featx.ImageError, match=r"1 of 3 images cannot be used: image 1: not an image"):
            client([photos[0], b"text", photos[1]], "fc7")
        assert isinstance(featx.ImageError("x").failures, list)
    with featx.Client(server.url, on_error="nan") as client:
        found = client(b"text", "fc7")
        assert np.isnan(found["fc7"]).all()
        assert found.failures[0].reason.startswith("not an image")
        assert found.failures[0].status == Status.NOT_AN_IMAGE
        assert client.predict([b"text"], head="svm")[0].label is None
        with pytest.raises(featx.FeatxError, match="answers 404: alexnet-mini offers"):
            client(photos[0], "fc99")
        found = client([photos[0], tmp_path / "missing.jpg", photos[1]], "fc7")
        assert np.isnan(found["fc7"]).all(axis=1).tolist() == [False, True, False]
        assert found.failures[0].reason == "missing: no such file"
        assert found.failures[0].status == Status.MISSING


def test_no_image_can_move_the_rows_of_others(server, photos):
    """By holding what looks like the end of its part."""
    first = photos[0].read_bytes()
    with featx.Client(server.url) as client:
        boundary = _Portion().form()[1].partition("boundary=")[2]
        evil = (
            first + f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="z"\r\n\r\n'.encode()
        )
        found = client([evil + first, photos[1]], "fc7")["fc7"]
        assert same_bits(found, client([photos[0], photos[1]], "fc7")["fc7"])
    with pytest.raises(featx.FeatxError, match="gives 1 rows for 0 images"):
        _Portion().failures([("done", "")], 0)


def test_a_client_sends_large_photos_in_several_requests(server, photos):
    padded = [photo.read_bytes() + bytes(3_000_000) for photo in photos]
    with featx.Client(server.url) as client, featx.Extractor("alexnet-mini", "fc7", device="cpu") as extractor:
        before = server.metric("featx_requests_total")
        assert same_bits(client(padded, "fc7")["fc7"], extractor(padded)["fc7"])
        assert server.metric("featx_requests_total") - before >= 3


def test_a_client_can_be_used_by_several_threads(server, photos):
    with (
        featx.Client(server.url, retries=0) as client,
        featx.Extractor("alexnet-mini", "fc7", device="cpu") as extractor,
    ):
        right = extractor(list(map(str, photos)))["fc7"]
        wrong: list[int] = []

        def ask(turn: int) -> None:
            row = turn % len(photos)
            if not same_bits(client(photos[row], "fc7")["fc7"], right[row : row + 1]):
                wrong.append(row)

        run_workers(range(60), 6, ask, threading.Event())
        assert not wrong


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("localhost:8000", None),
        ("http://localhost:abc", None),
        ("http://[::1", None),
        ("http://x:99999", None),
        ("http://x", "a\nb"),
    ],
)
def test_what_is_no_address_or_key_is_said_at_once(url, key):
    with pytest.raises(featx.FeatxError, match=r"is not the address of a service|no header can have"):
        featx.Client(url, api_key=key)


def test_nothing_to_send_is_said(server):
    with featx.Client(server.url) as client, pytest.raises(featx.FeatxError, match="there is no image to send"):
        client([])


def test_a_client_tries_again_and_then_says_that_nobody_is_there(tmp_path):
    client = featx.Client("http://127.0.0.1:9", retries=1)
    with pytest.raises(featx.FeatxError, match=r"127\.0\.0\.1 cannot be reached"):
        client.models()


def test_an_index_is_the_file_it_was_loaded_from_whatever_gets_its_name(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    path = write_features(tmp_path / "f.h5", values, [0, 1, 0, 1, 0, 1], ("a", "b"))
    index = Index("x", featx.open_features(path), {"fc7": (None, None)})
    path.replace(tmp_path / "old.h5")
    write_features(path, values[::-1].copy(), [1] * 6, ("c", "d"))
    for metric in METRICS:
        assert index.nearest("fc7", values[2], 1, metric)[0].tolist() == [2]
    assert [index.label(row) for row in range(3)] == ["a", "b", "a"]


@pytest.mark.parametrize("words", [("head", "svm", "svm.safetensors"), ("index", "photos", "f.h5")])
def test_only_the_network_of_a_head_or_index_is_loaded_where_no_other_is_named(material, words):
    """A machine without AlexNet's weights serves its own heads."""
    kind, name, file = words
    own = {kind: (f"{name}={material / file}",), "device": "cpu", "workers": 1}
    for more, networks in (
        ({}, ["alexnet-mini"]),
        ({"backbone": "lenet5", "weights": "random:0"}, ["lenet5", "alexnet-mini"]),
    ):
        models = load_models(featx.ServeConfig(**own, **more), Metrics())
        try:
            assert list(models.networks) == networks
            assert models.default.name == networks[0]
        finally:
            models.close()
