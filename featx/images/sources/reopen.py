"""The images that a features file was made from, read again."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from featx.images.bad_image import BadImage
from featx.images.sources.read import Archive, read_file, read_member
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
    def _archive(self) -> Archive:
        return Archive(self._root)

    def content(self, path: bytes, sha256: bytes | None = None) -> bytes:
        """The bytes of an image file.

        Args:
            sha256: of what it was; another content is refused.

        Raises:
            BadImage: it is not there any more, cannot be read, or has changed.
        """
        try:
            if self._kind == "zip":
                content = read_member(self._archive, path)
            else:
                folder = self._root if self._kind == "folder" else self._root.parent
                content = read_file(folder / os.fsdecode(path))
        except (OSError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadImage(Status.UNREADABLE, f"{printable(str(self._root))}: {reason}") from None
        if sha256 is not None and hashlib.sha256(content).digest() != sha256:
            raise BadImage(Status.UNREADABLE, "it has changed since its features were extracted")
        return content
