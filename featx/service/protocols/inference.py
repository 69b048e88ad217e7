"""The Open Inference Protocol, version 2, over HTTP, with its extension for binary tensors.

Sources:
    https://github.com/kserve/open-inference-protocol and Triton's "binary tensor data extension".
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import FastAPI, Request
from PIL import Image
from starlette.responses import Response

from featx import __version__
from featx.service.batching import Row
from featx.service.messages.answers import refuse_large_answer
from featx.service.messages.bodies import MOST_IMAGES, decode_base64, parse_json, read_body
from featx.service.messages.problems import PROBLEMS, Problem, json_answer
from featx.service.models import NONE, Classifier, Network
from featx.service.service import Service

IMAGE = "image"  # the one input: BYTES [N] of image files, or UINT8 [N, H, W, 3] of pixels
_HEADER = "Inference-Header-Content-Length"
_SIDE = 8192  # of pixels sent as a tensor
_DIGITS = 12  # of a number of bytes
_MOST_AXES = 4


def add_inference_protocol(app: FastAPI, service: Service) -> None:
    """Add the routes."""
    problems = PROBLEMS | {503: PROBLEMS[500]}

    @app.get("/v2", responses=PROBLEMS, tags=["v2"])
    async def server() -> Response:
        return json_answer({"name": "featx", "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live", responses=PROBLEMS, tags=["v2"])
    async def live() -> Response:
        return json_answer({"live": True})

    @app.get("/v2/health/ready", responses=problems, tags=["v2"])
    async def ready() -> Response:
        reason = await service.why_not_ready()
        if reason is not None:
            raise Problem(503, reason, headers={"Retry-After": "1"})
        return json_answer({"ready": True})

    @app.get("/v2/models/{model}", responses=PROBLEMS, tags=["v2"])
    async def metadata(model: str) -> Response:
        return json_answer(_describe(_served(service, model), model))

    @app.get("/v2/models/{model}/ready", responses=problems, tags=["v2"])
    async def model_ready(model: str) -> Response:
        _served(service, model)
        return await ready()

    @app.post("/v2/models/{model}/infer", responses=PROBLEMS, tags=["v2"], openapi_extra=_SCHEMA)
    async def infer(request: Request, model: str) -> Response:
        body = await read_body(request, most=service.config.max_body, idle_s=service.config.read_timeout)
        described, tail = _split(request, body)
        images = _images(described, tail)
        served = _served(service, model)
        wanted = _wanted(described, served)
        network = served if isinstance(served, Network) else served.network
        if isinstance(served, Network):
            values = sum(math.prod(served.layers[name].shape) for name, _ in wanted)
            refuse_large_answer(4 * values * len(images))
        rows = await service.rows(request, network, images)
        for place, row in enumerate(rows):  # tensors have no place for an image that failed
            if not row.done:
                status = 500 if row.status == "failed" else 422
                raise Problem(status, f"image {place}: {row.status.replace('_', ' ')}: {row.reason}")
        headers = {"X-Featx-Fingerprint": served.fingerprint}
        return _answer(described, model, [(name, _values(served, name, rows), b) for name, b in wanted], headers)


_SCHEMA: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": {
    "type": "object", "required": ["inputs"], "properties": {"inputs": {"type": "array", "items": {
        "type": "object", "required": ["name", "shape", "datatype"], "properties": {
            "name": {"type": "string"}, "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"type": "string", "enum": ["BYTES", "UINT8"]}, "data": {"type": "array"}}}}}}},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}  # fmt: skip


def _served(service: Service, name: str) -> Network | Classifier:
    found = service.models.networks.get(name) or service.models.classifiers.get(name)
    if found is None:
        known = ", ".join([*service.models.networks, *service.models.classifiers])
        raise Problem(404, f"there is no model {name[:100]!r}; there is {known}")
    return found


def _describe(served: Network | Classifier, name: str) -> dict[str, Any]:
    if isinstance(served, Network):
        outputs = [(layer, "FP32", list(spec.shape)) for layer, spec in served.layers.items()]
    else:
        outputs = [("scores", "FP64", [len(served.rule.classes)]), ("label", "BYTES", [])]
    return {
        "name": name, "versions": ["1"], "platform": "featx",
        "inputs": [{"name": IMAGE, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": n, "datatype": kind, "shape": [-1, *shape]} for n, kind, shape in outputs],
    }  # fmt: skip


def _split(request: Request, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON of a request, and the binary tensors behind it."""
    given = request.headers.get(_HEADER)
    length = len(body)
    if given is not None:
        if not given.isascii() or not given.isdigit() or len(given) > _DIGITS or int(given) > len(body):
            raise Problem(400, f"{_HEADER} is {given[:40]!r}; the body has {len(body)} bytes")
        length = int(given)
    described = parse_json(body[:length])
    if not isinstance(described, dict):
        raise Problem(400, 'the JSON must be an object: {"inputs": [...]}')
    return described, body[length:]


def _images(described: dict[str, Any], tail: bytes) -> list[bytes]:
    inputs = described.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(400, f"inputs must hold one tensor, called {IMAGE}")
    tensor = inputs[0]
    shape, kind = tensor.get("shape"), tensor.get("datatype")
    if tensor.get("name") != IMAGE:
        raise Problem(400, f"the input is called {str(tensor.get('name'))[:60]!r}; it must be {IMAGE!r}")
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MOST_AXES:
        raise Problem(
            400, "the input's shape must be a list of positive whole numbers: [N], or [N, H, W, 3] of pixels"
        )
    if not all(type(n) is int and 0 < n <= 1 << 31 for n in shape):
        raise Problem(400, "the input's shape must be a list of positive whole numbers")
    if shape[0] > MOST_IMAGES or (kind == "BYTES" and math.prod(shape) > MOST_IMAGES):
        raise Problem(
            413, f"there are {math.prod(shape) if kind == 'BYTES' else shape[0]} images; at most {MOST_IMAGES}"
        )
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and (type(size) is not int or not 0 <= size <= len(tail)):
        raise Problem(400, f"binary_data_size is {str(size)[:40]}; {len(tail)} bytes follow the JSON")
    if kind == "BYTES":
        found = _texts(tensor.get("data")) if size is None else _elements(tail[:size])
        if len(found) != math.prod(shape):
            raise Problem(400, f"the input's shape {shape} is {math.prod(shape)} images, and its data {len(found)}")
        return found
    if kind == "UINT8":
        return _of_pixels(
            _pixels(tensor.get("data"), shape) if size is None else np.frombuffer(tail[:size], np.uint8), shape
        )
    raise Problem(400, f"the input's datatype is {str(kind)[:40]!r}; it can be BYTES (image files) or UINT8 (pixels)")


def _texts(data: Any) -> list[bytes]:
    if not isinstance(data, list):
        raise Problem(400, "the input has neither data nor binary_data_size")
    return [decode_base64(item, f"image {place}") for place, item in enumerate(data)]


def _elements(content: bytes) -> list[bytes]:
    """BYTES in binary: each element behind its length, 4 bytes little-endian."""
    found, place = [], 0
    while place < len(content):
        if place + 4 > len(content):
            raise Problem(400, "the binary tensor ends within a length")
        (length,) = struct.unpack_from("<I", content, place)
        place += 4
        if place + length > len(content):
            raise Problem(400, "the binary tensor ends within an element")
        found.append(content[place : place + length])
        place += length
    return found


def _pixels(data: Any, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    try:
        values = np.asarray(data, dtype=object).reshape(-1)
        if len(values) != math.prod(shape) or not all(type(v) is int and 0 <= v <= 255 for v in values):
            raise ValueError
        return values.astype(np.uint8)
    except (ValueError, TypeError, OverflowError):
        raise Problem(400, f"the input's data are not {math.prod(shape)} whole numbers from 0 to 255") from None


def _of_pixels(values: npt.NDArray[np.uint8], shape: list[int]) -> list[bytes]:
    """Each picture as an uncompressed image file, which decodes to the same pixels."""
    if len(shape) != 4 or shape[3] != 3 or max(shape[1:3]) > _SIDE:
        raise Problem(400, f"the input's shape is {shape}; pixels are [N, H, W, 3], sides up to {_SIDE}")
    if values.size != math.prod(shape):
        raise Problem(400, f"the input's shape {shape} is {math.prod(shape)} values, and its data {values.size}")
    return [_bmp(picture) for picture in values.reshape(shape)]


def _bmp(picture: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "BMP")
    return out.getvalue()


def _wanted(described: dict[str, Any], served: Network | Classifier) -> list[tuple[str, bool]]:
    """Names of the outputs asked for, all by default, and whether each is to be binary."""
    names = list(served.layers) if isinstance(served, Network) else ["scores", "label"]
    overall = described.get("parameters")
    binary = bool(overall.get("binary_data_output", False)) if isinstance(overall, dict) else False
    asked = described.get("outputs")
    if asked is None:
        return [(name, binary) for name in names]
    found = []
    for one in asked if isinstance(asked, list) else [None]:
        output: dict[str, Any] = one if isinstance(one, dict) else {}
        name = output.get("name")
        if not isinstance(name, str) or name not in names:
            status = 404 if isinstance(name, str) else 400
            raise Problem(status, f"there is no output {str(name)[:60]!r}; there is {', '.join(names)}")
        parameters = output.get("parameters")
        own = parameters.get("binary_data", binary) if isinstance(parameters, dict) else binary
        found.append((name, bool(own)))
    return found


def _values(served: Network | Classifier, name: str, rows: Sequence[Row]) -> npt.NDArray[Any]:
    if isinstance(served, Network):
        return np.stack([served.pooled(row, name, NONE) for row in rows])
    scores = np.concatenate([served.scores(row) for row in rows])
    return scores if name == "scores" else np.array(served.rule.names(scores), dtype=object)


def _answer(
    described: dict[str, Any], model: str, outputs: list[tuple[str, npt.NDArray[Any], bool]], headers: dict[str, str]
) -> Response:
    tensors, tail = [], b""
    for name, values, binary in outputs:
        kind = {"f4": "FP32", "f8": "FP64", "O8": "BYTES"}[values.dtype.str[1:] if values.dtype != object else "O8"]
        tensor: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(values.shape)}
        if binary:
            content = _binary(values)
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            tensor["data"] = values.reshape(-1).tolist() if kind == "BYTES" else values.reshape(-1)
        tensors.append(tensor)
    found = {"model_name": model, "model_version": "1", "outputs": tensors}
    if isinstance(described.get("id"), str):
        found["id"] = described["id"]
    head = orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return Response(head, 200, headers, "application/json")
    return Response(head + tail, 200, {**headers, _HEADER: str(len(head))}, "application/octet-stream")


def _binary(values: npt.NDArray[Any]) -> bytes:
    if values.dtype != object:
        return np.ascontiguousarray(values).tobytes()
    texts = [str(value).encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)
