"""Objects that are not on this machine's disks: at s3://, gs://, http(s):// and what else fsspec knows."""

from __future__ import annotations

import functools
import http
import io
import os
import posixpath
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from featx.errors import SourceError
from featx.images.bad_image import MAX_FILE_BYTES, BadImage
from featx.images.processes.turns import Need, no_turns
from featx.images.sources.read import not_empty
from featx.status import Status

_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+-]*):/{1,3}(?P<rest>.*)", re.DOTALL)
_CLIPS = re.compile(r"((?:frames|flow):[\dx]+:)(.+)", re.DOTALL)
_IN_LIST = re.compile(rb"[a-z][a-z0-9+-]*://")
_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_WEB = ("http://", "https://")
_READ_AHEAD = 1 << 17
Answer = TypeVar("Answer")
ATTEMPTS, FIRST_WAIT_S = 4, 0.5
_TIMEOUT_S = 30.0


def url_of(source: Path | str) -> str | None:
    """The address that a source is; None for one of this machine. A `Path` has lost a slash of it.

    >>> url_of(Path("s3://bucket/photos")), url_of("photos"), url_of(Path("f.h5:/images"))
    ('s3://bucket/photos', None, None)
    """
    found = _URL.fullmatch(os.fspath(source))
    if found is None or len(found["protocol"]) < 2:
        return None
    slashes = "///" if found["protocol"] == "file" else "//"
    return f"{found['protocol']}:{slashes}{found['rest'].lstrip('/')}"


def place_of(source: Path) -> str:
    """A source as other folders know it too: its address, or its absolute path."""
    if (clips := _CLIPS.fullmatch(os.fspath(source))) and not source.exists():
        return clips[1] + os.path.abspath(clips[2])
    return url_of(source) or os.path.abspath(source)


def is_url_in_list(path: bytes) -> bool:
    """Whether an entry of a list is an address."""
    return _IN_LIST.match(path) is not None


def split_url(url: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it.

    Raises:
        SourceError: fsspec has none of that name, or what it needs is not installed.
    """
    import fsspec.core

    protocol = url.partition(":")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        needed = _EXTRAS.get(protocol)
        what = f"pip install {needed}" if needed else str(error)
        raise SourceError(f"{protocol}:// needs more than is installed: {what}") from None
    except ValueError as error:
        raise SourceError(
            f"{protocol}:// is no file system that is known here; s3://, gs:// and https:// are, among others"
        ) from error
    return system, str(path)


def fetch(url: str, start: int | None = None, end: int | None = None, need: Need = no_turns) -> bytes:
    """The bytes of an object, or a part of them, tried again with growing waits where the network fails.

    Raises:
        BadImage: missing, forbidden, larger than 1 GiB, or not to be had after `ATTEMPTS` attempts.
    """

    def once() -> bytes:
        if url.startswith(_WEB):
            return not_empty(_from_web(url, start, end))
        system, path = split_url(url)
        size = system.info(path).get("size") or 0 if end is None else 0
        if size > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"the object has {size} bytes, more than {MAX_FILE_BYTES}")
        need(int(size))
        content: bytes = system.cat_file(path, start=start, end=end)
        return not_empty(content)

    return patiently(once)


def size_of(url: str) -> int:
    """Of an object, in bytes.

    Raises:
        BadImage: as for `fetch`; or the server does not say.
    """

    def once() -> int:
        if url.startswith(_WEB):
            with _asked(urllib.request.Request(url, method="HEAD")) as answer:
                found = answer.headers.get("Content-Length")
        else:
            system, path = split_url(url)
            found = system.info(path).get("size")
        if found is None:
            raise BadImage(Status.UNREADABLE, "the server does not say how large it is")
        return int(found)

    return patiently(once)


@functools.lru_cache(maxsize=4096)
def is_there(url: str) -> bool:
    """Whether there is an object at an address."""
    try:
        return size_of(url) >= 0
    except BadImage as bad:
        return bad.status != Status.MISSING


def patiently(ask: Callable[[], Answer]) -> Answer:
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        try:
            return ask()
        except FileNotFoundError:
            raise BadImage(Status.MISSING, "no such object") from None
        except PermissionError as error:
            raise BadImage(Status.UNREADABLE, f"access denied: {_first_line(error)}") from None
        except (BadImage, SourceError):
            raise
        except Exception as error:  # every file system has errors of its own for a network that fails
            reason = f"{type(error).__name__}: {_first_line(error)}"
    raise BadImage(Status.UNREADABLE, f"{reason} ({ATTEMPTS} attempts)")


class RangeReader(io.RawIOBase):
    """An object as a file to read and seek in, each read a request that is tried again; for one thread.

    Raises BadImage where it cannot be read, as `fetch` does.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._size, self._place = url, size_of(url), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._place + len(buffer), self._size)
        if end <= self._place:
            return 0
        content = fetch(self._url, self._place, end)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def opened(url: str) -> io.BufferedReader:
    """An object as a buffered file.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return io.BufferedReader(RangeReader(url), _READ_AHEAD)
    except BadImage as bad:
        raise SourceError(f"{url} cannot be read: {bad}") from None


def joined(root: str, path: str) -> str:
    """The address of what a list at an address names; never a file of this machine.

    >>> joined("s3://bucket/lists", "../photos/a.jpg")
    's3://bucket/photos/a.jpg'
    """
    scheme, _, rest = root.partition("://")
    if root.startswith(_WEB):
        path = urllib.parse.quote(os.fsencode(path))
    host, _, below = rest.partition("/")
    whole = posixpath.normpath(posixpath.join("/", below, path.lstrip("/")))  # .. ends at the host or bucket
    return f"{scheme}://{host}{whole}"


def _from_web(url: str, start: int | None, end: int | None) -> bytes:
    """What a web server gives, never more than is allowed. (fsspec's has no such bound, and takes failures for gaps.)

    Raises:
        FileNotFoundError, PermissionError, OSError: what its answer means.
    """
    headers = {} if end is None else {"Range": f"bytes={start or 0}-{end - 1}"}
    with _asked(urllib.request.Request(url, headers=headers)) as answer:
        if end is not None and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            raise BadImage(Status.UNREADABLE, "the server gives no parts of a file; fetch the archive first")
        content: bytes = answer.read(MAX_FILE_BYTES + 1)
        promised = int(answer.headers.get("Content-Length") or len(content))
    if len(content) > MAX_FILE_BYTES:
        raise BadImage(Status.TOO_LARGE, f"the object has more than {MAX_FILE_BYTES} bytes")
    if len(content) < promised:  # what was cut off must not count as the image's own damage
        raise ConnectionError(f"the connection broke after {len(content)} of {promised} bytes")
    return content


def _asked(request: urllib.request.Request) -> Any:
    """A web server's answer.

    Raises:
        FileNotFoundError, PermissionError, OSError: what it says instead.
    """
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
            raise FileNotFoundError(request.full_url) from None
        if error.code in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            raise PermissionError(f"HTTP {error.code} {error.reason}") from None
        raise ConnectionError(f"HTTP {error.code} {error.reason}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
