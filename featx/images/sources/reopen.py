"""The images that a features file was made from, read again."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from featx.errors import SourceError
from featx.images.bad_image import BadImage
from featx.images.sources.containers import Container, open_container, root_of
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
