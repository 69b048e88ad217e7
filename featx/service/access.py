"""Around every request: its id, who may ask and how often, security headers, counters, and a line in the log."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featx.errors import UsageError
from featx.service.messages.problems import MEDIA_TYPE, Problem, problem_body
from featx.service.metrics import Metrics

_OPEN = (
    "/",
    "/v2/health/live",
    "/v2/health/ready",
    "/docs",
    "/openapi.json",
)  # asked without a key; and the page's files
PAGE_FILES = "/page/"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
}
CLIENT_GONE = 499  # nginx's number for it
_log = logging.getLogger("featx.access")
_errors = logging.getLogger("featx.service")
_KEY_LINE = re.compile(r"(?P<name>\S+)\s+(?P<hash>[0-9a-f]{64})")


class Keys:
    """The keys that may ask, as hashes: the file and the memory hold none that could be used."""

    def __init__(self, hashes: Sequence[tuple[str, str]], per_minute: int | None) -> None:
        self._hashes, self._per_minute = hashes, per_minute
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # name -> images left, and when that was

    @classmethod
    def read(cls, path: str | None, per_minute: int | None) -> Keys | None:
        """Of a file with a line NAME SHA256 for each; None without a file.

        Raises:
            UsageError: no such file, a line of another form, or no key at all.
        """
        if path is None:
            return None
        try:
            lines = Path(path).read_text().splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"--api-key-file {path} cannot be read: {error}") from error
        hashes: list[tuple[str, str]] = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            found = _KEY_LINE.fullmatch(line.strip())
            if found is None:
                raise UsageError(
                    f"{path}, line {number}: not NAME SHA256. The hash of a key: printf %s KEY | sha256sum"
                )
            hashes.append((found["name"], found["hash"]))  # one name may have several, while a key is exchanged
        if not hashes:
            raise UsageError(f"{path} holds no key; nobody could ask")
        return cls(hashes, per_minute)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; every hash is compared, in a time that does not depend on the key."""
        digest = hashlib.sha256(key.encode("latin-1", errors="replace")).hexdigest()  # the bytes that were sent
        found = None
        for name, one in self._hashes:
            if hmac.compare_digest(digest, one):
                found = name
        return found

    def charge(self, name: str, images: int) -> float:
        """Count some images of a key; 0, or in how many seconds there is room for them again."""
        if self._per_minute is None:
            return 0.0
        now = time.monotonic()
        with self._lock:
            left, then = self._left.get(name, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - then) * self._per_minute / 60)
            if left < min(images, self._per_minute):
                self._left[name] = left, now
                return (min(images, self._per_minute) - left) * 60 / self._per_minute
            self._left[name] = left - images, now
            return 0.0

    def give_back(self, name: str, images: int) -> None:
        """Uncount images that were not computed after all."""
        if self._per_minute is not None:
            with self._lock:
                left, then = self._left[name]
                self._left[name] = min(self._per_minute, left + images), then

    def take_over(self, before: Keys | None) -> None:
        """Go on counting where others have stopped."""
        if before is not None:
            self._left = before._left


class Access:
    """ASGI middleware."""

    def __init__(
        self, app: ASGIApp, *, keys: Callable[[], Keys | None], metrics: Metrics, fingerprint: Callable[[], str]
    ) -> None:
        self._app, self._keys, self._metrics, self._fingerprint = app, keys, metrics, fingerprint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        scope["featx.request_id"] = request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        status = 0
        only_head = scope["method"] == "HEAD"
        if only_head:  # answered as GET is, without the body
            scope = {**scope, "method": "GET"}

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.body" and only_head:
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    own.setdefault(name, value)
                own["X-Request-Id"] = request_id
                own.setdefault("X-Featx-Fingerprint", self._fingerprint())
            await send(message)

        self._metrics.in_flight.inc()
        try:
            refused = self._refusal(scope, headers)
            if refused is None:
                await self._app(scope, receive, answer)
            else:
                body = problem_body(refused.status, str(refused), request_id)
                await Response(body, refused.status, refused.headers, MEDIA_TYPE)(scope, receive, answer)
        except Exception as error:
            number = secrets.token_hex(4)
            _errors.exception("featx: error %s", number, exc_info=error)
            if not status:
                detail = f"something went wrong that should not; it is in the log as {number}"
                body = problem_body(500, detail, request_id)
                await Response(body, 500, media_type=MEDIA_TYPE)(scope, receive, answer)
        finally:
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status or CLIENT_GONE)).inc()
            self._metrics.seconds.labels("total").observe(seconds)
            self._write(scope, request_id, status or CLIENT_GONE, seconds)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        """Why a request is not let in; with a key that is known its name goes along."""
        keys = self._keys()
        path = scope["path"]
        if keys is None or path in _OPEN or path.startswith(PAGE_FILES) or scope["method"] == "OPTIONS":
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")
        name = keys.name_of(key.strip()) if key else None
        if name is None:
            what = "is not one of this service" if key else "is missing"
            return Problem(
                401, f"the API key {what}: Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
            )
        scope["featx.key"] = name
        return None

    def _write(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        if not _log.isEnabledFor(logging.INFO):
            return
        client = scope.get("client") or ("", 0)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "id": request_id, "client": client[0],
            "key": scope.get("featx.key"), "method": scope["method"], "path": scope["path"], "status": status,
            "images": scope.get("featx.images", 0), "ms": round(seconds * 1000, 1),
        }  # fmt: skip
        _log.info(json.dumps(line))
