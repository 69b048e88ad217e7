"""Images that are not on this machine's disks: at s3://, gs://, http(s):// and what else fsspec knows."""

from __future__ import annotations

import functools
import http
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from featx.errors import SourceError
from featx.images.bad_image import MAX_FILE_BYTES, BadImage
from featx.images.manifest import Manifest, Skipped, has_image_suffix, label_by_folder
from featx.images.processes.turns import Need, no_turns
from featx.images.sources.read import not_empty
from featx.runtime.text import printable
from featx.status import Status

_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+-]*):/{1,3}(?P<rest>.*)", re.DOTALL)
_IN_LIST = re.compile(rb"[a-z][a-z0-9+-]*://")
_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
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
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        try:
            if url.startswith(("http://", "https://")):
                return not_empty(_from_web(url, start, end))
            system, path = split_url(url)
            size = system.info(path).get("size") or 0 if end is None else 0
            if size > MAX_FILE_BYTES:
                raise BadImage(Status.TOO_LARGE, f"the object has {size} bytes, more than {MAX_FILE_BYTES}")
            need(int(size))
            content: bytes = system.cat_file(path, start=start, end=end)
            return not_empty(content)
        except FileNotFoundError:
            raise BadImage(Status.MISSING, "no such object") from None
        except PermissionError as error:
            raise BadImage(Status.UNREADABLE, f"access denied: {_first_line(error)}") from None
        except (BadImage, SourceError):
            raise
        except Exception as error:  # every file system has errors of its own for a network that fails
            reason = f"{type(error).__name__}: {_first_line(error)}"
    raise BadImage(Status.UNREADABLE, f"{reason} ({ATTEMPTS} attempts)")


def _from_web(url: str, start: int | None, end: int | None) -> bytes:
    """What a web server gives, never more than is allowed. (fsspec's has no such bound, and takes failures for gaps.)

    Raises:
        FileNotFoundError, PermissionError, OSError: what its answer means.
    """
    headers = {} if end is None else {"Range": f"bytes={start or 0}-{end - 1}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as answer:
            if end is not None and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                raise BadImage(Status.UNREADABLE, "the server gives no parts of a file; fetch the tar first")
            content: bytes = answer.read(MAX_FILE_BYTES + 1)
            promised = int(answer.headers.get("Content-Length") or len(content))
    except urllib.error.HTTPError as error:
        if error.code in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
            raise FileNotFoundError(url) from None
        if error.code in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            raise PermissionError(f"HTTP {error.code} {error.reason}") from None
        raise ConnectionError(f"HTTP {error.code} {error.reason}") from None
    if len(content) > MAX_FILE_BYTES:
        raise BadImage(Status.TOO_LARGE, f"the object has more than {MAX_FILE_BYTES} bytes")
    if len(content) < promised:  # what was cut off must not count as the image's own damage
        raise ConnectionError(f"the connection broke after {len(content)} of {promised} bytes")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


class RemoteFiles:
    """Objects below an address."""

    def __init__(self, root: Path) -> None:
        url = url_of(root)
        assert url is not None
        self._url = url.rstrip("/")

    @functools.cached_property
    def _listed(self) -> dict[bytes, bytes]:
        """Path -> size, and hash or time of change."""
        return list_objects(self._url)

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        return fetch(f"{self._url}/{os.fsdecode(path)}", need=need)

    def state(self, path: bytes) -> bytes:
        return self._listed.get(path, b"missing")

    def alike(self, path: bytes) -> bytes:
        return self.state(path).partition(b",")[0]

    def close(self) -> None:
        """There is nothing open."""


def list_objects(url: str) -> dict[bytes, bytes]:
    """Everything below an address: relative path -> size, and hash or time of change.

    Raises:
        SourceError: it cannot be listed.
    """
    system, base = split_url(url)
    try:
        found = system.find(base, detail=True)
    except Exception as error:  # as in `fetch`
        raise SourceError(f"{url} cannot be listed: {type(error).__name__}: {_first_line(error)}") from error
    listed = {}
    for name, info in found.items():
        changed = next((info[key] for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime") if key in info), "")
        relative = name.removeprefix(base).lstrip("/")
        listed[relative.encode(errors="surrogateescape")] = f"{info.get('size')},{changed}".encode()
    return listed


def scan_remote(source: Path) -> Manifest:
    """The images below an address, by path; the first folders are the classes.

    Raises:
        SourceError: it cannot be listed, or holds no images.
    """
    url = url_of(source)
    assert url is not None
    skipped, images = Skipped(), []
    for name in list_objects(url.rstrip("/")):
        if any(part.startswith(b".") for part in name.split(b"/")):
            skipped.add("hidden", name)
        elif has_image_suffix(name):
            images.append(name)
        else:
            skipped.add("not an image name", printable(name))
    return label_by_folder("remote", Path(url), sorted(images), skipped)
