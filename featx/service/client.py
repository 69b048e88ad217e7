"""A service as if it were here: the methods of Extractor and Predictor, over HTTP."""

from __future__ import annotations

import http.client
import io
import json
import secrets
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import FeatxError, ImageError, UsageError
from featx.extraction.in_memory.predictor import Prediction
from featx.extraction.in_memory.threads import Batch
from featx.images.bad_image import BadImage
from featx.images.inputs import as_list, encoded, name_of
from featx.status import Failure, Status

_AT_ONCE = 64  # images in one request,
_BYTES_AT_ONCE = 16 << 20  # and bytes; one image may have more
_BUSY = (429, 502, 503, 504)


class ServiceError(FeatxError):
    """The service refused, or could not be reached; `status` is that of HTTP, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """A `featx serve` somewhere else. Images are given as to an `Extractor`, and sent as they are.

    It can be used by several threads at once.

    Args:
        url: as http://localhost:8000.
        api_key: where the service asks for one.
        retries: how often a request is sent again if the service is busy or the connection breaks; it waits as long
            as the service says, else 0.5, 1, 2, ... seconds.
        timeout: seconds to wait for an answer.
        on_error: "raise" an ImageError for images that cannot be used, or give "nan" for their rows.

    Example:
        client = featx.Client("http://localhost:8000")
        features = client(["a.jpg", "b.jpg"], layers=["fc7"])    # {"fc7": (2, 4096)}
        client.predict("a.jpg")[0].label
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retries: int = 5,
        timeout: float = 60.0,
        on_error: str = "raise",
    ) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
            parts = urllib.parse.urlsplit("")
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError(f"{url!r} is not the address of a service; http://localhost:8000 is")
        key = (api_key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UsageError("api_key has characters that no header can have")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._prefix = host, port, urllib.parse.quote(parts.path.rstrip("/"), safe="/%")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._retries, self._timeout, self._on_error = retries, timeout, on_error
        self._idle: list[http.client.HTTPConnection] = []  # list.pop and append are safe among threads

    def __call__(
        self, images: Any, layers: str | Iterable[str] | None = None, *, pool: str = "none", model: str | None = None
    ) -> Batch:
        """name -> array (N, ...): as an Extractor gives, with the same bits.

        Raises:
            ImageError: with on_error="raise", images that cannot be used.
            ServiceError: the service refuses, or cannot be reached.
        """
        names = layers if layers is None or isinstance(layers, str) else ",".join(layers)
        query = {"layers": names, "pool": pool, "model": model}
        parts, failures, first = [], [], 0
        for some in _portions(images):
            body = self._ask("POST", "/v1/features", query, some, "application/x-npz")
            with np.load(io.BytesIO(body), allow_pickle=False) as found:
                statuses = list(zip(found["status"].tolist(), found["reason"].tolist(), strict=True))
                of_layers = [name for name in found.files if name.startswith("features/")]
                parts.append({name.removeprefix("features/"): found[name] for name in of_layers})
            failures += some.failures(statuses, first)
            first += len(some.images)
        batch = Batch((name, np.concatenate([part[name] for part in parts])) for name in parts[0])
        batch.failures = failures
        self._refuse(failures, first)
        return batch

    def transform(self, images: Any, layers: str | Iterable[str] | None = None) -> npt.NDArray[Any]:
        """(N, D) of N images: their layers side by side, flattened."""
        return np.concatenate([values.reshape(len(values), -1) for values in self(images, layers).values()], axis=1)

    def predict(self, images: Any, top: int = 1, *, head: str | None = None) -> list[Prediction]:
        """What each image is, as a Predictor says."""
        found: list[Prediction] = []
        failures: list[Failure] = []
        for some in _portions(images):
            query = {"top": top, "head": head}
            rows = json.loads(self._ask("POST", "/v1/predict", query, some, "application/json"))["images"]
            failures += some.failures([(row["status"], row["reason"] or "") for row in rows], len(found))
            found += [Prediction(row["label"], row["probability"], row["scores"] or {}) for row in rows]
        self._refuse(failures, len(found))
        return found

    def neighbors(
        self, images: Any, k: int = 10, *, layer: str | None = None, index: str | None = None, metric: str = "cosine"
    ) -> list[list[dict[str, Any]]]:
        """The k nearest images of an index for each image: row, path, label and distance, nearest first."""
        found: list[list[dict[str, Any]]] = []
        failures: list[Failure] = []
        for some in _portions(images):
            query = {"k": k, "layer": layer, "index": index, "metric": metric}
            rows = json.loads(self._ask("POST", "/v1/neighbors", query, some, "application/json"))["images"]
            failures += some.failures([(row["status"], row["reason"] or "") for row in rows], len(found))
            found += [row["neighbors"] or [] for row in rows]
        self._refuse(failures, len(found))
        return found

    def models(self) -> list[dict[str, Any]]:
        """Everything that the service has loaded."""
        found: list[dict[str, Any]] = json.loads(self._ask("GET", "/v1/models", {}, None, "application/json"))["data"]
        return found

    def close(self) -> None:
        """Close the connections; the next request opens another."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse(self, failures: list[Failure], images: int) -> None:
        if failures and self._on_error == "raise":
            shown = "; ".join(f"{failure.path}: {failure.reason}" for failure in failures[:3])
            raise ImageError(
                f"{len(failures)} of {images:,} images cannot be used: {shown}. on_error='nan' gives NaN rows for "
                f"them",
                failures,
            )

    def _ask(self, method: str, path: str, query: dict[str, Any], images: _Portion | None, accept: str) -> bytes:
        given = {key: value for key, value in query.items() if value is not None}
        headers = {**self._headers, "Accept": accept}
        body = None
        if images is not None:
            given["on_error"] = "row"  # also one image alone that cannot be used is a row
            body, headers["Content-Type"] = images.form()
        target = f"{self._prefix}{path}?{urllib.parse.urlencode(given)}"
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                status, answered, content = self._send(method, target, body, headers)
            except (OSError, http.client.HTTPException) as error:
                # A name that nobody has, or a certificate that is not trusted, will be so again.
                if last or isinstance(error, socket.gaierror | ssl.SSLCertVerificationError):
                    raise ServiceError(f"{self._host} cannot be reached: {error or type(error).__name__}") from error
                time.sleep(0.5 * 2**attempt)
                continue
            if status == 200:
                return content
            if status not in _BUSY or last:
                raise ServiceError(f"{self._host} answers {status}: {_detail(content)}", status)
            after = answered.get("Retry-After", "")
            time.sleep(min(60, int(after)) if after.isdigit() else 0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _send(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._kind(self._host, self._port, timeout=self._timeout)
        refused = None
        try:
            try:
                connection.request(method, target, body, headers)
            except (BrokenPipeError, ConnectionResetError) as error:
                refused = error  # perhaps it has answered before it had everything
            answer = connection.getresponse()
            found = answer.status, answer.headers, answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            if refused is not None:
                raise refused from None
            raise
        if refused is None:
            self._idle.append(connection)
        else:
            connection.close()
        return found


class _Portion:
    """Images of one request, as files; those that are none here already are sent empty."""

    def __init__(self) -> None:
        self.images: list[Any] = []
        self.contents: list[bytes] = []
        self.bad: dict[int, BadImage] = {}

    def add(self, image: Any, content: bytes, bad: BadImage | None) -> None:
        if bad is not None:
            self.bad[len(self.images)] = bad
        self.images.append(image)
        self.contents.append(content)

    def form(self) -> tuple[bytes, str]:
        """A multipart form and its type. The boundary is drawn anew: no image can hold it by design."""
        boundary = f"featx-{secrets.token_hex(16)}"
        parts = []
        for place, content in enumerate(self.contents):
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{place}"\r\n\r\n'
            parts += [head.encode(), content, b"\r\n"]
        return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"

    def failures(self, rows: list[tuple[str, str]], first: int) -> list[Failure]:
        """The images that could not be used, of the status and reason of every row.

        Raises:
            ServiceError: there are not as many rows as images.
        """
        if len(rows) != len(self.images):
            raise ServiceError(f"the service gives {len(rows)} rows for {len(self.images)} images")
        found = []
        for place, (status, reason) in enumerate(rows):
            if status != "done":
                bad = self.bad.get(place) or BadImage(_status(status), reason)
                text = f"{bad.status.name.lower().replace('_', ' ')}: {bad}"
                found.append(
                    Failure(first + place, name_of(self.images[place], first + place), int(bad.status), text)
                )
        return found


def _status(name: str) -> Status:
    """A status by the name that the service gives it.

    Raises:
        ServiceError: there is none of that name.
    """
    try:
        return Status[name.upper()]
    except KeyError:
        raise ServiceError(f"the service gives an image the status {name!r:.40}") from None


def _portions(images: Any) -> Iterator[_Portion]:
    """Images in requests of so many and so many bytes."""
    every = as_list(images)
    if not every:
        raise UsageError("there is no image to send")
    portion, size = _Portion(), 0
    for image in every:
        try:
            content, bad = encoded(image), None
        except BadImage as error:
            content, bad = b"", error
        if portion.images and (len(portion.images) >= _AT_ONCE or size + len(content) > _BYTES_AT_ONCE):
            yield portion
            portion, size = _Portion(), 0
        portion.add(image, content, bad)
        size += len(content)
    yield portion


def _detail(content: bytes) -> str:
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")
