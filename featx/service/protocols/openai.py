"""POST /v1/embeddings, as the clients of OpenAI's API send it.

Source:
    https://platform.openai.com/docs/api-reference/embeddings; the input is images as data URLs or base64.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from starlette.responses import Response

from featx.service.messages.bodies import MOST_IMAGES, decode_base64, parse_json, read_body
from featx.service.messages.problems import PROBLEMS, Problem, json_answer
from featx.service.models import NONE, Network
from featx.service.service import Service

_SCHEMA: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": {
    "type": "object", "required": ["input"], "properties": {
        "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
        "model": {"type": "string", "description": "NETWORK or NETWORK/LAYER"},
        "encoding_format": {"type": "string", "enum": ["float", "base64"]},
    }}}}}}  # fmt: skip


def add_embeddings(app: FastAPI, service: Service) -> None:
    """Add the route."""

    @app.post("/v1/embeddings", responses=PROBLEMS, openapi_extra=_SCHEMA, summary="Embeddings, in OpenAI's form")
    async def embeddings(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Problem(415, "Content-Type must be application/json")
        body = await read_body(request, most=service.config.max_body, idle_s=service.config.read_timeout)
        contents, model, as_base64 = _asked(parse_json(body))
        network, layer = chosen(service, model)
        rows = await service.rows(request, network, contents)
        for place, row in enumerate(rows):  # the form has no place for an image that failed
            if not row.done:
                status = 500 if row.status == "failed" else 422
                raise Problem(status, f"input {place}: {row.status.replace('_', ' ')}: {row.reason}")
        vectors = [np.ascontiguousarray(network.pooled(row, layer, NONE), "<f4").reshape(-1) for row in rows]
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": base64.b64encode(vector.tobytes()).decode() if as_base64 else vector,
            }
            for place, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        found = {"object": "list", "model": f"{network.name}/{layer}", "data": data, "usage": usage}
        headers = {"X-Featx-Fingerprint": network.fingerprint}
        return json_answer(found, headers)


def chosen(service: Service, model: str | None) -> tuple[Network, str]:
    """The network and layer that NETWORK or NETWORK/LAYER means; by default the last of -l."""
    name, _, layer = (model or service.models.default.name).partition("/")
    network = service.models.network(name)
    return network, network.layer(layer) if layer else network.default_layer


def _asked(value: Any) -> tuple[list[bytes], str | None, bool]:
    """The images, the model, and whether the answer is to be base64."""
    if not isinstance(value, dict):
        raise Problem(400, 'the JSON must be an object: {"input": [...], "model": ...}')
    given = value.get("input")
    items = given if isinstance(given, list) else [given]
    if not items:
        raise Problem(400, "input is empty")
    if len(items) > MOST_IMAGES:
        raise Problem(413, f"input has {len(items)} images; at most {MOST_IMAGES} may be sent at once")
    model, kind = value.get("model"), value.get("encoding_format", "float")
    if model is not None and not isinstance(model, str):
        raise Problem(400, "model is not text; GET /v1/models names them")
    if kind not in ("float", "base64"):
        raise Problem(400, f"encoding_format is {str(kind)[:40]!r}; it can be float or base64")
    if value.get("dimensions") is not None:
        raise Problem(400, "dimensions cannot be chosen: a layer has those it has")
    return [decode_base64(item, f"input {place}") for place, item in enumerate(items)], model, kind == "base64"
