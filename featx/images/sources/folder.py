"""A folder of images: its first folders are the classes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from featx.errors import SourceError
from featx.images.manifest import Manifest, Skipped, has_image_suffix, label_by_folder
from featx.runtime.text import printable

IsWanted = Callable[[bytes], bool]


def scan_folder(root: Path, follow_links: bool, is_wanted: IsWanted = has_image_suffix) -> Manifest:
    """The files below a folder, by path.

    Args:
        is_wanted: whether a name is that of an image, or of what else is meant.
    """
    skipped = Skipped()
    files: list[bytes] = []
    folders: list[bytes] = []
    for path, is_folder in _walk(os.fsencode(root), follow_links, skipped, is_wanted):
        (folders if is_folder else files).append(path)
    _count_empty_folders(folders, files, skipped)
    return label_by_folder("folder", root, sorted(files), skipped)


def _walk(root: bytes, follow_links: bool, skipped: Skipped, is_wanted: IsWanted) -> Iterator[tuple[bytes, bool]]:
    """(relative path, is a folder) of everything below a folder."""
    # Each folder waits with the identities of the folders above it, by which a loop of links is noticed.
    waiting: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
    while waiting:
        below, above = waiting.pop()
        here = os.path.join(root, below)
        try:
            entries = list(os.scandir(here))
            identity = os.stat(here)
        except OSError as error:
            raise SourceError(f"cannot list {printable(here)}: {error.strerror}; nothing was read") from error
        inside = above | {(identity.st_dev, identity.st_ino)}
        for entry in entries:
            path = os.path.join(below, entry.name)
            kind = _kind_of(entry, follow_links, inside, is_wanted)
            if kind == "folder":
                yield path, True
                waiting.append((path, inside))
            elif kind == "image":
                yield path, False
            else:
                skipped.add(kind, path)


def _kind_of(
    entry: os.DirEntry[bytes], follow_links: bool, inside: frozenset[tuple[int, int]], is_wanted: IsWanted
) -> str:
    """ "folder", "image", or the reason why it is neither."""
    if entry.name.startswith(b"."):
        return "hidden"
    try:
        target = entry.stat()
    except OSError:  # a broken link, or one to itself: a missing image if its name says image, and gets its row
        return "image" if is_wanted(entry.name) else "not an image name"
    if stat.S_ISDIR(target.st_mode):
        if entry.is_symlink() and not follow_links:
            return "link to a folder (--follow-links follows it)"
        return "link that loops" if (target.st_dev, target.st_ino) in inside else "folder"
    if not is_wanted(entry.name):
        return "not an image name"
    return "image" if stat.S_ISREG(target.st_mode) else "not a regular file"


def _count_empty_folders(folders: Iterable[bytes], files: Iterable[bytes], skipped: Skipped) -> None:
    used = {parent for path in files for parent in _parents(path)}
    for folder in folders:
        if folder not in used:
            skipped.add("folder without images", folder)


def _parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:n]) for n in range(1, len(parts))]
