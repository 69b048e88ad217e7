"""Other people's clients work against the service, unchanged."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import openai
import pytest
import tritonclient.http as triton
from PIL import Image
from serving import same_bits
from tritonclient.utils import InferenceServerException

import featx


@pytest.fixture(scope="module")
def photos(material):
    return sorted((material / "photos").rglob("*.jpg"))


@pytest.fixture(scope="module")
def wanted(photos):
    with featx.Extractor("alexnet-mini", ["conv5", "fc7"], device="cpu") as extractor:
        return extractor(list(map(str, photos)))


def data_url(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_the_client_of_openai(server, photos, wanted, encoding):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        found = client.embeddings.create(
            model="alexnet-mini/fc7", input=[data_url(p.read_bytes()) for p in photos[:3]], encoding_format=encoding
        )
        assert [one.index for one in found.data] == [0, 1, 2]
        for one, right in zip(found.data, wanted["fc7"], strict=False):
            values = np.frombuffer(base64.b64decode(one.embedding), "<f4") if encoding == "base64" else one.embedding
            assert same_bits(np.array(values, np.float32), right)
        # Without an encoding the client asks for base64 and decodes it.
        plain = client.embeddings.create(
            model="alexnet-mini", input=base64.b64encode(photos[0].read_bytes()).decode()
        )
        assert same_bits(np.array(plain.data[0].embedding, np.float32), wanted["fc7"][0])
        assert {model.id for model in client.models.list()} >= {"alexnet-mini", "svm"}
        assert client.models.retrieve("svm").id == "svm"
        asked = [
            ([data_url(photos[0].read_bytes()), data_url(b"text")], "alexnet-mini", 422, "input 1: not an image"),
            ("https://example.org/a.jpg", "alexnet-mini", 400, "this service fetches nothing"),
            (data_url(photos[0].read_bytes()), "alexnet-mini/fc9", 404, "not 'fc9'"),
        ]
        for content, model, status, said in asked:
            with pytest.raises(openai.APIStatusError) as refused:
                client.embeddings.create(model=model, input=content)
            assert refused.value.status_code == status
            assert said in refused.value.body["detail"]


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as found:
        yield found


def test_tritons_client_asks_for_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("alexnet-mini")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "featx"
    described = client.get_model_metadata("alexnet-mini")
    assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {one["name"]: one["shape"] for one in described["outputs"]} == {"conv5": [-1, 256, 8, 8], "fc7": [-1, 384]}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritons_client_sends_files(client, photos, wanted, binary_in, binary_out):
    contents = [photo.read_bytes() for photo in photos[:4]]
    tensor = triton.InferInput("image", [4], "BYTES")
    if binary_in:
        tensor.set_data_from_numpy(np.array(contents, dtype=object), binary_data=True)
    else:  # in JSON, bytes are base64
        tensor.set_data_from_numpy(np.array([base64.b64encode(c) for c in contents], dtype=object), binary_data=False)
    asked = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("fc7", "conv5")]
    found = client.infer("alexnet-mini", [tensor], outputs=asked, request_id="7")
    assert found.get_response()["id"] == "7"
    for name in ("fc7", "conv5"):
        assert same_bits(found.as_numpy(name), wanted[name][:4])


def test_tritons_client_sends_pixels(client, photos):
    pixels = np.stack([np.asarray(Image.open(photo).resize((80, 70))) for photo in photos[:2]])
    with featx.Extractor("alexnet-mini", "fc7", device="cpu") as extractor:
        right = extractor(list(pixels))["fc7"]
    for binary in (True, False):
        tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels, binary_data=binary)
        asked = [triton.InferRequestedOutput("fc7", binary_data=True)]
        assert same_bits(client.infer("alexnet-mini", [tensor], outputs=asked).as_numpy("fc7"), right)


def test_tritons_client_asks_a_head(client, material, photos):
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([p.read_bytes() for p in photos[:2]], dtype=object))
    found = client.infer("svm", [tensor])
    with featx.Predictor(material / "svm.safetensors", device="cpu") as predictor:
        right = predictor.scores(list(map(str, photos[:2])))
        labels = [one.label for one in predictor.predict(list(map(str, photos[:2])))]
    np.testing.assert_allclose(found.as_numpy("scores"), right, rtol=1e-12)
    assert [value.decode() for value in found.as_numpy("label")] == labels


def test_what_triton_cannot_have_is_said(client, photos):
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([photos[0].read_bytes(), b"text"], dtype=object))
    with pytest.raises(InferenceServerException, match="image 1: not an image"):
        client.infer("alexnet-mini", [tensor])
    with pytest.raises(InferenceServerException, match="there is no model 'nothing'"):
        client.infer("nothing", [tensor])
    with pytest.raises(InferenceServerException, match="there is no output 'fc9'; there is conv5, fc7"):
        client.infer("alexnet-mini", [tensor], outputs=[triton.InferRequestedOutput("fc9")])


def request(head: object, tail: bytes = b"", length: int | None = None) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(head).encode()
    return text + tail, {"Inference_Header_Content_Length": str(len(text) if length is None else length)}


def tensor(**changes: object) -> dict:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["eA=="]} | changes]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (request([]), "the JSON must be an object"),
        (request({}), "inputs must hold one tensor"),
        (request({"inputs": [1]}), "inputs must hold one tensor"),
        (request(tensor(name="x")), "it must be 'image'"),
        (request(tensor(shape=[])), "must be a list of positive whole numbers"),
        (request(tensor(shape=[True])), "must be a list of positive whole numbers"),
        (request(tensor(shape=[1] + [2**31 - 1] * 100_000)), "must be a list of positive whole numbers: [N]"),
        ((b"{}", {"Inference_Header_Content_Length": "0" * 5000}), "Inference-Header-Content-Length is"),
        (request(tensor(shape=[10**6])), "there are 1000000 images; at most 1024"),
        (request(tensor(shape=[2])), "is 2 images, and its data 1"),
        (request(tensor(datatype="FP32")), "it can be BYTES (image files) or UINT8 (pixels)"),
        (request(tensor(data="x")), "neither data nor binary_data_size"),
        (request(tensor(data=["x"])), "image 0 is not base64"),
        (request(tensor(parameters={"binary_data_size": 9})), "0 bytes follow the JSON"),
        (request(tensor(parameters={"binary_data_size": 3}), b"abc"), "ends within a length"),
        (
            request(tensor(parameters={"binary_data_size": 6}), struct.pack("<I", 99) + b"ab"),
            "ends within an element",
        ),
        (request(tensor(datatype="UINT8", shape=[1, 2, 2, 3], data=[1])), "are not 12 whole numbers"),
        (request(tensor(datatype="UINT8", shape=[1, 2, 2, 3], data=[256] * 12)), "are not 12 whole numbers"),
        (request(tensor(datatype="UINT8", shape=[1, 12], data=[1] * 12)), "pixels are [N, H, W, 3]"),
        (request(tensor(), length=10**9), "Inference-Header-Content-Length is '1000000000'"),
        ((b"{", {}), "the body is not JSON"),
    ],
)
def test_requests_of_another_shape(server, body, said):
    content, headers = body
    status, _, answer = server.ask("POST", "/v2/models/alexnet-mini/infer", content, **headers)
    assert status in (400, 413)
    assert said in json.loads(answer)["detail"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "the JSON must be an object"),
        ({}, "input 0 is not text"),
        ({"input": []}, "input is empty"),
        ({"input": [1]}, "input 0 is not text"),
        ({"input": ["eA=="], "model": 3}, "model is not text"),
        ({"input": "eA==", "encoding_format": "hex"}, "it can be float or base64"),
        ({"input": "eA==", "dimensions": 12}, "dimensions cannot be chosen"),
        ({"input": "data:image/png,abc"}, "without ;base64,"),
        ({"input": ["eA=="] * 1025}, "at most 1024"),
    ],
)
def test_embeddings_of_another_shape(server, value, said):
    status, _, answer = server.ask(
        "POST", "/v1/embeddings", json.dumps(value).encode(), Content_Type="application/json"
    )
    assert status in (400, 413)
    assert said in json.loads(answer)["detail"]
