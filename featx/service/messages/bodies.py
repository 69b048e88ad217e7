"""Images out of a request's body, within limits while it arrives: one image, a multipart form, JSON with base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import orjson
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from featx.service.messages.problems import Problem

MOST_IMAGES = 1024  # of one request
_DRAINED_S = 2.0
_NAME = 200  # characters of a name that are repeated in the answer

_ENCODED = {"type": "string", "description": "base64, or a data URL"}
_NAMED = {
    "type": "object", "required": ["data"], "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "data": _ENCODED},
}  # fmt: skip
_JSON_IMAGES = {
    "type": "object",
    "required": ["images"],
    "additionalProperties": False,
    "properties": {"images": {"type": "array", "minItems": 1, "items": {"anyOf": [_ENCODED, _NAMED]}}},
}
_BINARY = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"image": {"type": "array", "items": _BINARY}}}
IMAGES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _BINARY},
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": _JSON_IMAGES},
        },
    }
}


@dataclass(frozen=True)
class Sent:
    """An image as it was sent.

    Attributes:
        name: of the file, if it has one; else its place, from 0.
    """

    name: str
    content: bytes


class Gone(Exception):
    """Nobody is there any more who could be answered."""


async def read_body(request: Request, *, most: int, idle_s: float) -> bytes:
    """The whole body.

    Args:
        most: bytes; a larger one is refused as soon as that is known, not when it is there.
        idle_s: seconds in which a part of it must arrive.

    Raises:
        Problem: 413 or 408.
        Gone: the connection was closed.
    """
    close = {"Connection": "close"}  # nobody will read the rest
    too_large = Problem(413, f"the body is larger than {most:,} bytes, the limit of this service", headers=close)
    stream = request.stream().__aiter__()
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        await _drain(stream, most)
        raise too_large
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            part = await asyncio.wait_for(anext(stream), idle_s)
        except StopAsyncIteration:
            return b"".join(parts)
        except TimeoutError:
            raise Problem(
                408, f"no part of the body arrived for {idle_s:g} s", headers={"Connection": "close"}
            ) from None
        except ClientDisconnect:
            raise Gone from None
        size += len(part)
        if size > most:
            await _drain(stream, most)
            raise too_large
        parts.append(part)


async def _drain(stream: AsyncIterator[bytes], most: int) -> None:
    """Read on for a while: whoever is still sending would not read an answer, and find the connection broken."""
    left = most
    with contextlib.suppress(TimeoutError, StopAsyncIteration, ClientDisconnect):
        async with asyncio.timeout(_DRAINED_S):
            while left > 0:
                left -= len(await anext(stream))


async def images_of(request: Request, body: bytes, *, most: int = MOST_IMAGES) -> list[Sent]:
    """The images in a body, by its Content-Type.

    Raises:
        Problem: 400, 413 or 415.
    """
    header = request.headers.get("content-type", "")
    kind = header.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = await _of_form(request, body)
    elif kind == "application/json":
        found = [_of_item(item, place) for place, item in enumerate(_items(parse_json(body)))]
    elif kind.startswith("image/") or kind == "application/octet-stream":
        found = [Sent("0", body)]
    else:
        what = f"{kind!r}" if kind else "missing"
        raise Problem(
            415,
            f"Content-Type is {what}; send image/jpeg or another type of image, multipart/form-data or "
            f"application/json",
        )
    if not found:
        raise Problem(400, "there is no image in the request")
    if len(found) > most:
        raise Problem(413, f"there are {len(found)} images in the request; at most {most} may be sent at once")
    return found


async def _of_form(request: Request, body: bytes) -> list[Sent]:
    async def whole() -> AsyncIterator[bytes]:
        yield body

    try:
        stream = cast("Any", whole())  # Starlette types it as a generator
        form = await MultiPartParser(request.headers, stream, max_files=MOST_IMAGES + 1, max_fields=64).parse()
    except (MultiPartException, KeyError, ValueError, AttributeError) as error:
        reason = getattr(error, "message", "") or "it has no boundary, or does not follow it"
        raise Problem(400, f"the multipart form cannot be read: {reason.rstrip('.')}") from None
    found: list[Sent] = []
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            name = (value.filename or str(len(found)))[:_NAME]
            name = name.encode("utf-8", "replace").decode()  # a form may name any encoding
            found.append(Sent(name, await value.read()))
    await form.close()
    return found


def parse_json(body: bytes) -> Any:
    """The value of a JSON body; Problem 400 if it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error}") from None


def _refuse_unknown_fields(found: dict[str, Any], known: tuple[str, ...], hint: str) -> None:
    """What a client asks for must not be left aside without a word."""
    for name in found:
        if name not in known:
            raise Problem(400, f"the JSON has an unknown field {name[:_NAME]!r}; {hint}")


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        one = "image" if "image" in value else "images"
        _refuse_unknown_fields(
            value, (one,), "layers, head and the like are parameters of the address, as ?layers=fc7"
        )
    if isinstance(value, dict) and "image" in value:
        return [value["image"]]
    items = value.get("images") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise Problem(
            400,
            'the JSON must be {"images": [BASE64, ...]}, {"image": BASE64}, or with {"name": ..., "data": BASE64}',
        )
    return items


def _of_item(item: Any, place: int) -> Sent:
    name = str(place)
    if isinstance(item, dict):
        _refuse_unknown_fields(item, ("name", "data"), "an image has name and data")
        given = item.get("name", name)
        name = given[:_NAME] if isinstance(given, str) else name
        item = item.get("data")
    return Sent(name, decode_base64(item, f"image {place}"))


def decode_base64(text: Any, what: str) -> bytes:
    """The bytes of base64 or of a data URL; Problem 400 for anything else, addresses of images included."""
    if not isinstance(text, str):
        raise Problem(400, f"{what} is not text; it must be base64 or a data URL")
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Problem(400, f"{what} is a data URL without ;base64,")
    elif "://" in text[:16]:
        raise Problem(400, f"{what} is an address; this service fetches nothing: send the image itself as base64")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, f"{what} is not base64") from None
