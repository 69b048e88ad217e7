"""Errors as RFC 9457 problem details: one sentence in one JSON shape, whatever went wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from featx.errors import FeatxError, ImageError, UnknownLayer, UsageError

MEDIA_TYPE = "application/problem+json"
_CHOICES = re.compile(r"\^\(([\w|-]+)\)\$")  # what a parameter can be, as its pattern
_PROBLEM = {"description": "What is wrong, in one sentence (RFC 9457).", "content": {MEDIA_TYPE: {"schema": {
    "type": "object", "required": ["title", "status", "detail"],
    "properties": {"type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
                   "detail": {"type": "string"}, "instance": {"type": "string"}},
}}}}  # fmt: skip
PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 504), _PROBLEM
)


def json_answer(value: Any, headers: dict[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), 200, headers, "application/json")


class Problem(FeatxError):
    """What a request is refused with."""

    def __init__(self, status: int, detail: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers or {}


def problem_body(status: int, detail: str, request_id: str = "") -> bytes:
    """The JSON of a problem."""
    described: dict[str, Any] = {
        "type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail
    }  # fmt: skip
    if request_id:
        described["instance"] = f"urn:request:{request_id}"
    return orjson.dumps(described)


def problem(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that says what is wrong."""
    body = problem_body(status, detail, request.scope.get("featx.request_id", ""))
    return Response(body, status, headers, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Turn what is raised on purpose into a problem; the rest is `Access`'s."""

    @app.exception_handler(Problem)
    def refused(request: Request, error: Problem) -> Response:
        return problem(request, error.status, str(error), error.headers)

    @app.exception_handler(FeatxError)
    def misused(request: Request, error: FeatxError) -> Response:
        if isinstance(error, UnknownLayer):
            return problem(request, 404, str(error))
        if isinstance(error, UsageError | ImageError):
            return problem(request, 422 if isinstance(error, ImageError) else 400, str(error))
        raise error

    @app.exception_handler(HTTPException)
    def not_found(request: Request, error: HTTPException) -> Response:
        details = {
            404: f"there is nothing at {request.url.path}; /docs says what there is",
            405: f"{request.method} is not for {request.url.path}",
        }
        detail = details.get(error.status_code, str(error.detail))
        return problem(request, error.status_code, detail, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem(request, 422, describe_invalid(error.errors()))


def describe_invalid(errors: Sequence[Any]) -> str:
    """One sentence about a parameter that is not as it should be.

    >>> describe_invalid([{"loc": ("query", "metric"), "msg": "...", "input": "l2", "ctx": {"pattern": "^(a|b|c)$"}}])
    "metric is 'l2': it can be a, b or c"
    >>> describe_invalid([{"loc": ("query", "k"), "msg": "Input should be less than 100", "input": "1000"}])
    "k is '1000': input should be less than 100"
    """
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    message = str(first["msg"])
    if choices := _CHOICES.fullmatch(str((first.get("ctx") or {}).get("pattern"))):
        *others, last = choices[1].split("|")
        message = f"it can be {', '.join(others)} or {last}"
    given = f" is {str(first.get('input'))[:60]!r}" if first.get("input") is not None else ""
    return f"{where}{given}: {message[:1].lower()}{message[1:]}"
