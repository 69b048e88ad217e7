"""A service as if it were here: the methods of Extractor and Predictor, over HTTP."""

from __future__ import annotations

import http.client
import io
import json
import time
import urllib.parse
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import FeatxError, ImageError, UsageError
from featx.extraction.in_memory.predictor import Prediction
from featx.extraction.in_memory.threads import Batch
from featx.images.bad_image import BadImage
from featx.images.inputs import as_list, encoded, name_of
from featx.store.reader import Failure

_AT_ONCE = 64  # images in one request
_BUSY = (429, 502, 503, 504)
_ROWS = {"on_error": "row"}  # also one image alone that cannot be used is a row
_BOUNDARY = "featx-1f0c2b1e7d"


class ServiceError(FeatxError):
    """The service refused, or could not be reached; `status` is that of HTTP, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """A `featx serve` somewhere else. Images are given as to an `Extractor`, and sent as they are.

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
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is not the address of a service; http://localhost:8000 is")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._retries, self._timeout, self._on_error = retries, timeout, on_error
        self._connection: http.client.HTTPConnection | None = None

    def __call__(
        self, images: Any, layers: str | Iterable[str] | None = None, *, pool: str = "none", model: str | None = None
    ) -> Batch:
        """name -> array (N, ...): as an Extractor gives, with the same bits.

        Raises:
            ImageError: with on_error="raise", images that cannot be used.
            ServiceError: the service refuses, or cannot be reached.
        """
        names = layers if layers is None or isinstance(layers, str) else ",".join(layers)
        parts, failures, first = [], [], 0
        for some in _portions(images):
            query = {"layers": names, "pool": pool, "model": model, **_ROWS}
            body = self._ask("POST", "/v1/features", query, some, "application/x-npz")
            with np.load(io.BytesIO(body), allow_pickle=False) as found:
                about = {key: found[key] for key in ("status", "reason")}
                parts.append(
                    {k.removeprefix("features/"): found[k] for k in found.files if k.startswith("features/")}
                )
            statuses = zip(about["status"].tolist(), about["reason"].tolist(), strict=True)
            failures += _failures([(status, reason) for status, reason in statuses], some, first)
            first += len(some)
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
            answer = json.loads(
                self._ask("POST", "/v1/predict", {"top": top, "head": head, **_ROWS}, some, "application/json")
            )
            rows = answer["images"]
            failures += _failures([(row["status"], row["reason"] or "") for row in rows], some, len(found))
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
            query = {"k": k, "layer": layer, "index": index, "metric": metric, **_ROWS}
            rows = json.loads(self._ask("POST", "/v1/neighbors", query, some, "application/json"))["images"]
            failures += _failures([(row["status"], row["reason"] or "") for row in rows], some, len(found))
            found += [row["neighbors"] or [] for row in rows]
        self._refuse(failures, len(found))
        return found

    def models(self) -> list[dict[str, Any]]:
        """Everything that the service has loaded."""
        found: list[dict[str, Any]] = json.loads(self._ask("GET", "/v1/models", {}, None, "application/json"))["data"]
        return found

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

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

    def _ask(self, method: str, path: str, query: dict[str, Any], images: list[Any] | None, accept: str) -> bytes:
        given = {key: value for key, value in query.items() if value is not None}
        target = f"{self._prefix}{path}?{urllib.parse.urlencode(given)}"
        headers = {**self._headers, "Accept": accept}
        body = None
        if images is not None:
            body = _form(images)
            headers["Content-Type"] = f"multipart/form-data; boundary={_BOUNDARY}"
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                status, answered, content = self._send(method, target, body, headers)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if last:
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
        if self._connection is None:
            self._connection = self._kind(self._host, self._port, timeout=self._timeout)
        self._connection.request(method, target, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.headers, answer.read()


def _portions(images: Any) -> list[list[Any]]:
    every = as_list(images)
    return [every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE)] or [[]]


def _form(images: list[Any]) -> bytes:
    """A multipart form; files are sent as they are, arrays as PNGs of the same pixels."""
    parts = []
    for place, image in enumerate(images):
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{place}"\r\n\r\n'
        try:
            parts += [head.encode(), encoded(image), b"\r\n"]
        except BadImage as bad:
            raise ImageError(f"{name_of(image, place)} cannot be sent: {bad}") from None
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])


def _failures(rows: list[tuple[str, str]], images: list[Any], first: int) -> list[Failure]:
    return [
        Failure(first + place, name_of(images[place], first + place), 0, f"{status.replace('_', ' ')}: {reason}")
        for place, (status, reason) in enumerate(rows)
        if status != "done"
    ]


def _detail(content: bytes) -> str:
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")
