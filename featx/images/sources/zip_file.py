"""A zip of images, read without unpacking."""

from __future__ import annotations

import os
import struct
import zipfile
from collections import Counter
from pathlib import Path

from featx.errors import SourceError
from featx.images.manifest import Manifest, Skipped, has_image_suffix, label_by_folder
from featx.runtime.text import printable


def scan_zip(path: Path) -> Manifest:
    skipped = Skipped()
    files: list[bytes] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = os.fsencode(member.filename)
                if member.is_dir():
                    continue
                if any(part.startswith((b".", b"__MACOSX")) for part in name.split(b"/")):
                    skipped.add("hidden", name)
                elif not has_image_suffix(name):
                    skipped.add("not an image name", name)
                else:
                    files.append(name)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as error:
        raise SourceError(f"{path} cannot be read as a zip: {error}") from error
    for name, count in Counter(files).items():
        if count > 1:
            raise SourceError(f"{path} holds {printable(name)} {count} times; which one is meant?")
    return label_by_folder("zip", path, sorted(files), skipped)
