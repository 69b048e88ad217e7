"""A zip of images, read without unpacking."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from featx.errors import SourceError
from featx.images.manifest import Manifest, Skipped, has_image_suffix, label_by_folder
from featx.images.sources.read import Archive
from featx.runtime.text import printable


def scan_zip(path: Path) -> Manifest:
    skipped = Skipped()
    files: list[bytes] = []
    try:
        with Archive(path) as archive:
            for name in archive.twice:
                raise SourceError(f"{path} holds {printable(name)} more than once; which one is meant?")
            for name in archive.members:
                if any(part.startswith((b".", b"__MACOSX")) for part in name.split(b"/")):
                    skipped.add("hidden", name)
                elif not has_image_suffix(name):
                    skipped.add("not an image name", name)
                else:
                    files.append(name)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as error:
        raise SourceError(f"{path} cannot be read as a zip: {error}") from error
    return label_by_folder("zip", path, sorted(files), skipped)
