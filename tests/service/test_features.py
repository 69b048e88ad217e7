"""Features over HTTP are those of `featx extract`, bit for bit, in every form and under any load."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading

import numpy as np
import pyarrow as pa
import pytest
from serving import expected, form, same_bits

from featx.runtime.threads import run_workers

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def photos(material):
    return sorted((material / "photos").rglob("*.jpg"))


@pytest.fixture(scope="module")
def wanted(material, tmp_path_factory):
    """layer or (layer, pooling) -> (12, ...) of `featx extract`, in the order of `photos`."""
    folder = tmp_path_factory.mktemp("wanted")
    plain = expected(material / "photos", folder / "plain.h5")
    found = {name: np.array(plain[name]) for name in plain}
    for number, pool in enumerate(("avg", "max", "spp:1,2,4")):
        pooled = expected(material / "photos", folder / f"{number}.h5", layers="conv5", pool=pool)
        found["conv5", pool] = np.array(pooled["conv5"])
    return found


def npy(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def test_one_image_alone_has_the_bits_of_a_file(server, photos, wanted):
    for row, photo in enumerate(photos):
        status, headers, body = server.image("/v1/features?layers=fc7", photo.read_bytes(), Accept=NPY)
        assert (status, headers["Content-Type"]) == (200, NPY)
        assert same_bits(npy(body), wanted["fc7"][row : row + 1])
        assert headers["X-Featx-Fingerprint"] == server.about["models"][0]["fingerprint"]


@pytest.mark.parametrize("pool", ["avg", "max", "spp:1,2,4"])
def test_pooling_has_the_bits_of_a_file(server, photos, wanted, pool):
    body, kind = form([photo.read_bytes() for photo in photos])
    status, _, content = server.ask(
        "POST", f"/v1/features?layers=conv5&pool={pool}", body, Content_Type=kind, Accept=NPY
    )
    assert status == 200, content
    assert same_bits(npy(content), wanted["conv5", pool])


def test_every_form_says_the_same(server, photos, wanted):
    contents = [photo.read_bytes() for photo in photos[:3]] + [b"no image", b""]
    body, kind = form(contents, ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"])
    path = "/v1/features?layers=conv5,fc7&pool=avg"

    def ask(accept: str) -> bytes:
        status, headers, content = server.ask("POST", path, body, Content_Type=kind, Accept=accept)
        assert (status, headers["Content-Type"]) == (200, accept), content
        assert headers["X-Featx-Status"] == "done,done,done,not_an_image,empty"
        return content

    nan = np.full((2, 1), np.nan, np.float32)
    right = {
        "conv5": np.concatenate([wanted["conv5", "avg"][:3], nan.repeat(256, 1)]),
        "fc7": np.concatenate([wanted["fc7"][:3], nan.repeat(384, 1)]),
    }
    packed = np.load(io.BytesIO(ask(NPZ)), allow_pickle=False)
    assert packed["name"].tolist() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    assert packed["status"].tolist() == ["done", "done", "done", "not_an_image", "empty"]
    described = json.loads(ask(JSON))
    table = pa.ipc.open_stream(ask(ARROW)).read_all()
    assert table["sha256"].to_pylist() == [one["sha256"] for one in described["images"]] == packed["sha256"].tolist()
    assert described["layers"]["conv5"] == {"shape": [256], "pooling": "avg"}
    assert described["layers"]["fc7"] == {"shape": [384], "pooling": "none"}
    for layer, values in right.items():
        assert same_bits(packed[f"features/{layer}"], values)
        column = table[layer].combine_chunks()
        assert column.null_count == 2
        assert same_bits(column.values.to_numpy(zero_copy_only=False).reshape(5, -1)[:3], values[:3])
        rows = [one["features"] and one["features"][layer] for one in described["images"]]
        assert rows[3:] == [None, None]
        assert same_bits(np.array(rows[:3], np.float32), values[:3])  # JSON's text gives every float32 back
    assert "no image of a known format" in described["images"][3]["reason"]
    assert table.schema.metadata[b"fingerprint"].decode() == described["fingerprint"]


@pytest.mark.parametrize("shape", ["list", "named", "data-url", "single"])
def test_json_with_base64(server, photos, wanted, shape):
    texts = [base64.b64encode(photo.read_bytes()).decode() for photo in photos[:2]]
    value = {
        "list": {"images": texts},
        "named": {"images": [{"name": f"n{i}", "data": text} for i, text in enumerate(texts)]},
        "data-url": {"images": [f"data:image/jpeg;base64,{text}" for text in texts]},
        "single": {"image": texts[0]},
    }[shape]
    status, _, content = server.ask(
        "POST", "/v1/features?layers=fc7", json.dumps(value).encode(), Content_Type=JSON, Accept=NPZ
    )
    assert status == 200, content
    found = np.load(io.BytesIO(content), allow_pickle=False)
    assert same_bits(found["features/fc7"], wanted["fc7"][: len(found["name"])])
    if shape == "named":
        assert found["name"].tolist() == ["n0", "n1"]


def test_sixteen_clients_at_once_get_each_their_own(server, photos, wanted):
    """In blocks of every size, beside images that cannot be used."""
    wrong: list[str] = []
    before = server.metric("featx_batch_images_count"), server.metric("featx_batch_images_sum")

    def client(number: int) -> None:
        for turn in range(12):
            row = (number * 5 + turn) % len(photos)
            if turn % 4 == 3:
                status, _, body = server.image("/v1/features?layers=fc7", b"\xff\xd8 damaged")
                if status != 422:
                    wrong.append(f"a damaged one: {status} {body[:200]!r}")
                continue
            status, _, body = server.image("/v1/features?layers=fc7", photos[row].read_bytes(), Accept=NPY)
            if status != 200 or not same_bits(npy(body), wanted["fc7"][row : row + 1]):
                wrong.append(f"row {row}: {status}")

    run_workers(range(16), 16, client, threading.Event())
    assert not wrong
    blocks = server.metric("featx_batch_images_count") - before[0]
    images = server.metric("featx_batch_images_sum") - before[1]
    assert images == 16 * 12
    assert images / blocks > 1.5, "nothing was computed together"


def test_the_last_layer_is_the_default_and_json_the_default_form(server, photos):
    status, headers, body = server.image("/v1/features", photos[0].read_bytes())
    assert (status, headers["Content-Type"]) == (200, JSON)
    assert list(json.loads(body)["layers"]) == ["fc7"]


@pytest.mark.parametrize(
    ("path", "headers", "status", "said"),
    [
        ("?layers=fc9", {}, 404, "alexnet-mini offers conv5, fc7, not 'fc9'"),
        ("?layers=fc7&pool=median", {}, 400, "--pool is 'median'"),
        ("?layers=conv5&pool=cls", {}, 400, "--pool cls does not suit conv5"),
        ("?model=vgg99", {}, 400, "no network 'vgg99'; there is alexnet-mini"),
        ("?layers=conv5,fc7", {"Accept": NPY}, 406, "is for one layer"),
        ("", {"Accept": "text/html"}, 406, "none of 'text/html' can be had"),
        ("?layers=fc7", {"Accept": "application/json;q=0"}, 406, "can be had"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_sentence(server, photos, path, headers, status, said):
    found, answered, body = server.image(f"/v1/features{path}", photos[0].read_bytes(), **headers)
    problem = json.loads(body)
    assert (found, problem["status"]) == (status, status)
    assert said in problem["detail"]
    assert answered["Content-Type"] == "application/problem+json"
    assert problem["instance"] == f"urn:request:{answered['X-Request-Id']}"


@pytest.mark.parametrize(
    ("accept", "layers", "kind"),
    [
        (f"{NPY}, {NPZ}", "conv5,fc7", NPZ), (f"{NPY}, {NPZ}", "fc7", NPY), (f"{JSON};q=0, */*;q=0.5", "fc7", NPZ),
        (f"{NPY};q=0.5, {ARROW}", "fc7", ARROW), ("application/*", "fc7", JSON), ("text/html, */*;q=0.1", "fc7", JSON),
        (f"{NPZ};q=x, {NPY}", "fc7", NPY),
    ],
)  # fmt: skip
def test_accept_is_read_as_http_has_it(server, photos, accept, layers, kind):
    status, headers, _ = server.image(f"/v1/features?layers={layers}", photos[0].read_bytes(), Accept=accept)
    assert (status, headers["Content-Type"]) == (200, kind)


def test_an_answer_that_would_fill_the_memory_is_refused_before_it_is_made(server, photos):
    body, kind = form([photos[0].read_bytes()] * 6)
    path = "/v1/features?layers=conv5&pool=spp:" + ",".join(["99"] * 20)
    status, _, answer = server.ask("POST", path, body, Content_Type=kind)
    assert status == 413
    assert "the answer would have 1,204,346,880 bytes" in json.loads(answer)["detail"]


def test_head_is_get_without_the_body(server):
    for path in ("/", "/v2/health/ready", "/v1/models", "/docs"):
        status, headers, body = server.ask("HEAD", path)
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 10


def test_one_image_that_cannot_be_used_is_422_or_a_row(server):
    status, _, body = server.image("/v1/features", b"GIF89a")
    assert status == 422
    assert json.loads(body)["detail"].startswith(("damaged", "not an image"))
    status, _, body = server.image("/v1/features?on_error=row", b"GIF89a")
    assert status == 200
    assert json.loads(body)["images"][0]["features"] is None


def test_models_say_what_they_are(server, material):
    status, _, body = server.ask("GET", "/v1/models")
    assert status == 200
    found = {one["id"]: one for one in json.loads(body)["data"]}
    assert set(found) == {"alexnet-mini", "svm", "softmax", "pooled", "photos", "pooled-photos"}
    net = found["alexnet-mini"]
    assert net["layers"] == {"conv5": {"shape": [256, 8, 8]}, "fc7": {"shape": [384]}}
    assert net["preprocessing"]["crop"] == 64
    assert len(net["weights"]["sha256"]) == 64
    assert found["svm"]["classes"] == ["a", "b", "c"]
    one = json.loads(server.ask("GET", "/v1/models/svm")[2])
    assert one == found["svm"]
    assert server.ask("GET", "/v1/models/nothing")[0] == 404


def test_a_service_of_another_process_says_the_same_fingerprint_as_its_layers_change_nothing(
    material, server, tmp_path
):
    from featx.options.serving import ServeConfig
    from featx.service.loading import load_models
    from featx.service.metrics import Metrics

    shutil.copy(material / "svm.safetensors", tmp_path / "h.safetensors")
    models = load_models(
        ServeConfig(backbone="alexnet-mini", layers="fc6", device="cpu", head=(f"h={tmp_path / 'h.safetensors'}",)),
        Metrics(),
    )
    assert models.default.fingerprint == server.about["models"][0]["fingerprint"]
    assert list(models.default.layers) == ["fc6", "fc7"]
    assert models.default.default_layer == "fc6"  # of -l, whatever the head needs
    models.close()
