"""A folder, text list, CSV or zip becomes an ordered manifest."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

from featx.errors import SourceError
from featx.images.manifest import IMAGE_SUFFIXES, Manifest, Skipped, make_manifest
from featx.images.sources.dataset import DatasetRows, is_dataset
from featx.images.sources.folder import scan_folder
from featx.images.sources.lists import scan_csv, scan_list, scan_standard_input
from featx.images.sources.remote import url_of
from featx.images.sources.remote_folder import scan_remote
from featx.images.sources.table import is_table, scan_table
from featx.images.sources.tar_file import is_tar, scan_tar
from featx.images.sources.video.clips import VIDEO_SUFFIXES, clips_of, scan_clips
from featx.images.sources.zip_file import scan_zip
from featx.runtime.files import is_hdf5
from featx.runtime.text import printable

ACCEPTED = (
    "a folder, a text list or CSV of paths, a zip, an uncompressed tar or shard-{000..099}.tar, FILE.h5:/DATASET, a "
    ".parquet or .arrow file, frames:N:VIDEOS, an address as s3://bucket/folder, - for a list on standard input, or "
    "one image"
)
_OF_LISTS = ("", ".txt", ".lst", ".list")


def scan(source: str | os.PathLike[str], *, follow_links: bool = False) -> Manifest:
    """The manifest of a folder, a list, a zip, tars, an HDF5 dataset of images, an address, or one image.

    A list is a text (one path a line), a CSV (`path,label[,split][,group]`), or "-", standard input, with paths
    relative to the working directory.

    Folders and zips are sorted by path; the first folder of a path is its class, unless the top folders are all
    called train, val, test or the like: then they are splits and the next folder is the class. Lists and CSVs
    keep their own order, and their paths are relative to the file they stand in.

    Raises:
        SourceError: nothing there, unreadable, or no images.
    """
    path = Path(source)
    if clips_of(path) is not None:
        return scan_clips(path, follow_links=follow_links)
    if (found := _scan_container(path)) is not None:
        return found
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SourceError(f"{printable(str(path))}: {error.strerror or error}") from error
    if stat.S_ISDIR(mode):
        return scan_folder(path, follow_links)
    if not stat.S_ISREG(mode):
        raise SourceError(f"{path} is neither a folder nor a file")
    if path.suffix.lower() in (".csv", ".tsv"):
        return scan_csv(path)
    if is_hdf5(path):
        raise SourceError(
            f"{path} is a features file; give the images it was made from. Images in HDF5 are {path}:/DATASET"
        )
    if zipfile.is_zipfile(path):
        return scan_zip(path)
    if path.suffix.lower() in VIDEO_SUFFIXES - IMAGE_SUFFIXES:
        raise SourceError(f"{path} is a video; say how many of its frames: frames:25:{path}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return make_manifest("list", path, path.parent, [os.fsencode(path.name)], [None], [None], Skipped())
    try:
        return scan_list(path)
    except SourceError as error:
        if path.suffix.lower() in _OF_LISTS:
            raise
        raise SourceError(f"{path} is not a source ({error}). It can be {ACCEPTED}") from None


def _scan_container(path: Path) -> Manifest | None:
    """The images of standard input, an HDF5 dataset, a table, tars or an address; None for other sources."""
    if str(path) == "-":
        return scan_standard_input()
    if is_dataset(path):
        rows = DatasetRows(path)
        try:
            names = [b"%08d" % row for row in range(len(rows))]
        finally:
            rows.close()
        return make_manifest("hdf5", path, path, names, [None] * len(names), [None] * len(names), Skipped())
    if is_tar(path):
        return scan_tar(path)
    if is_table(path):
        return scan_table(path)
    if url_of(path) is None:
        return None
    ending = path.suffix.lower()
    if ending == ".zip":
        return scan_zip(path)
    if ending in (".csv", ".tsv"):
        return scan_csv(path)
    return scan_list(path) if ending == ".txt" else scan_remote(path)
