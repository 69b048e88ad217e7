"""A zip of images, read without unpacking."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from featx.errors import SourceError
from featx.images.bad_image import BadImage
from featx.images.manifest import Manifest, Skipped, has_image_suffix, label_by_folder
from featx.images.sources.read import Archive
from featx.images.sources.remote import opened, url_of
from featx.runtime.text import printable


def _refuse_unknown_encoding(path: Path, name: bytes) -> None:
    """A folder whose name says no encoding and is not UTF-8 could be any class."""
    folder = name.rpartition(b"/")[0]
    try:
        folder.decode()
    except UnicodeDecodeError:
        raise SourceError(
            f"{path}: the folder {printable(folder)} is not named in UTF-8, and the zip does not say how it is: its "
            f"classes would be called wrongly. Pack it again with UTF-8 names (7-Zip: -mcu=on), or unpack it"
        ) from None


def scan_zip(path: Path) -> Manifest:
    skipped = Skipped()
    files: list[bytes] = []
    try:
        url = url_of(path)
        with Archive(path if url is None else opened(url)) as archive:
            for name in archive.twice:
                raise SourceError(f"{path} holds {printable(name)} more than once; which one is meant?")
            for name in archive.members:
                if any(part.startswith((b".", b"__MACOSX")) for part in name.split(b"/")):
                    skipped.add("hidden", name)
                elif not has_image_suffix(name):
                    skipped.add("not an image name", name)
                else:
                    _refuse_unknown_encoding(path, name)
                    files.append(name)
    except BadImage as bad:
        raise SourceError(f"{path} cannot be read: {bad}") from None
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as error:
        raise SourceError(f"{path} cannot be read as a zip: {error}") from error
    return label_by_folder("zip", path, sorted(files), skipped)
