"""The images below an address, as those of a folder."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from featx.errors import SourceError
from featx.images.bad_image import BadImage
from featx.images.manifest import Manifest, Skipped, has_image_suffix, label_by_folder
from featx.images.processes.turns import Need, no_turns
from featx.images.sources.remote import fetch, patiently, split_url, url_of
from featx.runtime.text import printable


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

    def once() -> dict[str, Any]:
        system.invalidate_cache()
        found: dict[str, Any] = system.find(base, detail=True)
        return found

    try:
        found = patiently(once)
    except BadImage as bad:
        raise SourceError(f"{url} cannot be listed: {bad}") from None
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
