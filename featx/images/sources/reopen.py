"""The images that a features file was made from, read again."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from featx.errors import SourceError, UsageError
from featx.images.bad_image import BadImage
from featx.images.sources.containers import Container, open_container, root_of
from featx.images.sources.remote import is_url_in_list, joined, url_of
from featx.runtime.text import printable
from featx.status import Status


class SourceImages:
    """Reads images of a source by the names that a features file has of them."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        """Args:

        source: what the features file's provenance says of it: "path" and "kind".
        """
        self._root, self._kind = Path(source["path"]), source["kind"]

    @cached_property
    def _container(self) -> Container:
        return open_container(self._kind, root_of(self._kind, self._root))

    def content(self, path: bytes, sha256: bytes | None = None) -> bytes:
        """The bytes of an image file.

        Args:
            sha256: of what it was; another content is refused.

        Raises:
            BadImage: it is not there any more, cannot be read, or has changed.
        """
        try:
            content = self._container.read(path)
        except (OSError, zipfile.BadZipFile, SourceError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadImage(Status.UNREADABLE, f"{printable(str(self._root))}: {reason}") from None
        if sha256 is not None and hashlib.sha256(content).digest() != sha256:
            raise BadImage(Status.UNREADABLE, "it has changed since its features were extracted")
        return content


def listed_path(folder: Path, kind: str, source: Path, path: bytes, where: str) -> bytes:
    """The path of an image of a source as a list in `folder` names it: relative to it, or absolute.

    Args:
        where: the features file, for the message.

    Raises:
        UsageError: the images are in an archive or data set, whose files no list can name.
    """
    if kind in ("zip", "tar", "hdf5", "table", "remote", "video"):
        raise UsageError(f"the images of {where} are in {source}, whose files no list can name: unpack it")
    if is_url_in_list(path):
        return path
    root = root_of(kind, source)
    if (address := url_of(root)) is not None:
        return os.fsencode(joined(address, os.fsdecode(path)))
    whole = os.path.normpath(os.path.join(os.fsencode(root), path))
    inside = os.fsencode(folder) + b"/"
    return whole[len(inside) :] if whole.startswith(inside) else whole
