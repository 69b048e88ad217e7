"""A folder, text list, CSV or zip becomes an ordered manifest: row i of every output is image i of it.

The manifest is made before anything is decoded. Everything that is in the source and not in the manifest is
counted with its reason.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featx.atomic import is_hdf5
from featx.errors import SourceError
from featx.report import printable

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".mpo"}
)
SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
NO_LABEL = -1


@dataclass(frozen=True)
class Manifest:
    """The images of a source, in order.

    Attributes:
        kind: "folder", "list", "csv" or "zip".
        source: the folder, list, CSV or zip.
        root: what the paths are relative to: a folder, or the zip.
        paths: N relative POSIX paths as bytes (os.fsencode), each once. A list may also hold absolute ones.
        labels: N indices into `classes`, -1 for none.
        classes: K names, sorted by code point.
        split_of: N indices into `splits`, -1 for none.
        splits: names such as "train" and "test", sorted.
        skipped: reason -> how many things of the source are not images of the manifest.
        examples: reason -> one of them.
    """

    kind: str
    source: Path
    root: Path
    paths: tuple[bytes, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    split_of: tuple[int, ...]
    splits: tuple[str, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digest(self) -> str:
        """SHA-256 over paths, labels, classes and splits, hexadecimal."""
        digest = hashlib.sha256()
        for path, label, split in zip(self.paths, self.labels, self.split_of, strict=True):
            digest.update(b"%d:%s%d,%d;" % (len(path), path, label, split))
        digest.update("\0".join((*self.classes, "", *self.splits)).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def part(self, rows: Sequence[int]) -> Manifest:
        """Some of the images, in the order of `rows`."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            split_of=tuple(self.split_of[row] for row in rows),
        )

    def full_path(self, row: int) -> Path:
        """Where image `row` is; only for sources that are not zips."""
        return self.root / os.fsdecode(self.paths[row])

    def name(self, row: int) -> str:
        """The path of image `row`, fit to be printed."""
        return printable(self.paths[row])


def scan(source: str | os.PathLike[str], *, follow_links: bool = False) -> Manifest:
    """The manifest of a folder, a text list (one path a line), a CSV (path,label[,split]) or a zip.

    Folders and zips are sorted by path; the first folder of a path is its class, unless the top folders are all
    called train, val, test or the like: then they are splits and the next folder is the class. Lists and CSVs
    keep their own order, and their paths are relative to the file they stand in.

    Raises:
        SourceError: nothing there, unreadable, no images, or the same path twice.
    """
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SourceError(f"{printable(str(path))}: {error.strerror or error}") from error
    if stat.S_ISDIR(mode):
        return _scan_folder(path, follow_links)
    if not stat.S_ISREG(mode):
        raise SourceError(f"{path} is neither a folder nor a file")
    if path.suffix.lower() == ".csv":
        return _scan_csv(path)
    if is_hdf5(path):
        raise SourceError(f"{path} is a features file; give the images it was made from")
    if zipfile.is_zipfile(path):
        return _scan_zip(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SourceError(f"{path} is one image; give the folder it is in, or a text file listing paths")
    return _scan_list(path)


class _Skipped:
    """Counts what is left out, with one example for each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, path: str | bytes) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, printable(path))


def _scan_folder(root: Path, follow_links: bool) -> Manifest:
    skipped = _Skipped()
    files: list[bytes] = []
    folders: list[bytes] = []
    for path, is_folder in _walk(os.fsencode(root), follow_links, skipped):
        (folders if is_folder else files).append(path)
    _count_empty_folders(folders, files, skipped)
    return _labelled_by_folder("folder", root, sorted(files), skipped)


def _walk(root: bytes, follow_links: bool, skipped: _Skipped) -> Iterator[tuple[bytes, bool]]:
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
            kind = _kind_of(entry, follow_links, inside)
            if kind == "folder":
                yield path, True
                waiting.append((path, inside))
            elif kind == "image":
                yield path, False
            else:
                skipped.add(kind, path)


def _kind_of(entry: os.DirEntry[bytes], follow_links: bool, inside: frozenset[tuple[int, int]]) -> str:
    """ "folder", "image", or the reason why it is neither."""
    if entry.name.startswith(b"."):
        return "hidden"
    try:
        target = entry.stat()
    except OSError:  # a broken link, or one to itself: a missing image if its name says image, and gets its row
        return "image" if _has_image_suffix(entry.name) else "not an image name"
    if stat.S_ISDIR(target.st_mode):
        if entry.is_symlink() and not follow_links:
            return "link to a folder (--follow-links follows it)"
        return "link that loops" if (target.st_dev, target.st_ino) in inside else "folder"
    if not _has_image_suffix(entry.name):
        return "not an image name"
    return "image" if stat.S_ISREG(target.st_mode) else "not a regular file"


def _has_image_suffix(path: bytes) -> bool:
    return os.path.splitext(os.fsdecode(path))[1].lower() in IMAGE_SUFFIXES


def _count_empty_folders(folders: Iterable[bytes], files: Iterable[bytes], skipped: _Skipped) -> None:
    used = {parent for path in files for parent in _parents(path)}
    for folder in folders:
        if folder not in used:
            skipped.add("folder without images", folder)


def _parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:n]) for n in range(1, len(parts))]


def _labelled_by_folder(kind: str, root: Path, paths: list[bytes], skipped: _Skipped) -> Manifest:
    labels: list[str | None] = []
    splits: list[str | None] = []
    parts_of = [path.split(b"/") for path in paths]
    tops = {os.fsdecode(parts[0]).lower() for parts in parts_of if len(parts) > 1}
    by_split = bool(tops) and tops <= SPLIT_FOLDERS and any(len(parts) > 2 for parts in parts_of)
    if kind == "zip" and len(tops) == 1 and not by_split and all(len(parts) > 1 for parts in parts_of):
        inner = _labelled_by_folder("zip", root, [b"/".join(p[1:]) for p in parts_of], _Skipped())
        labels = [None if c == NO_LABEL else inner.classes[c] for c in inner.labels]
        splits = [None if c == NO_LABEL else inner.splits[c] for c in inner.split_of]
        return _manifest(kind, root, root, paths, labels, splits, skipped)
    for parts in parts_of:
        folders = [os.fsdecode(part) for part in parts[:-1]]
        splits.append(folders.pop(0) if by_split and folders else None)
        labels.append(folders[0] if folders else None)
    return _manifest(kind, root, root, paths, labels, splits, skipped)


def _manifest(
    kind: str,
    source: Path,
    root: Path,
    paths: list[bytes],
    labels: list[str | None],
    splits: list[str | None],
    skipped: _Skipped,
) -> Manifest:
    if not paths:
        left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.counts.items())
        raise SourceError(f"no images in {printable(str(source))}" + (f" (left out: {left_out})" if left_out else ""))
    classes = tuple(sorted({label for label in labels if label is not None}))
    names = tuple(sorted({split for split in splits if split is not None}))
    index_of = {name: index for index, name in enumerate(classes)}
    split_index = {name: index for index, name in enumerate(names)}
    return Manifest(
        kind=kind,
        source=source,
        root=root,
        paths=tuple(paths),
        labels=tuple(NO_LABEL if label is None else index_of[label] for label in labels),
        classes=classes,
        split_of=tuple(NO_LABEL if split is None else split_index[split] for split in splits),
        splits=names,
        skipped=dict(skipped.counts),
        examples=skipped.examples,
    )


def _scan_zip(path: Path) -> Manifest:
    skipped = _Skipped()
    files: list[bytes] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = os.fsencode(member.filename)
                if member.is_dir():
                    continue
                if any(part.startswith((b".", b"__MACOSX")) for part in name.split(b"/")):
                    skipped.add("hidden", name)
                elif not _has_image_suffix(name):
                    skipped.add("not an image name", name)
                else:
                    files.append(name)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as error:
        raise SourceError(f"{path} cannot be read as a zip: {error}") from error
    for name, count in Counter(files).items():
        if count > 1:
            raise SourceError(f"{path} holds {printable(name)} {count} times; which one is meant?")
    return _labelled_by_folder("zip", path, sorted(files), skipped)


def _scan_list(path: Path) -> Manifest:
    content = path.read_bytes()
    if b"\0" in content:  # find -print0: the only way to list names with newlines
        lines = [line for line in content.split(b"\0") if line]
        if not all(_plausible_path(line) for line in lines[:100]):
            raise SourceError(f"{path} is not a list of paths: it holds binary data")
    else:
        lines = [line.rstrip(b"\r") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    paths = _normalised(path, [(number, line) for number, line in enumerate(lines, 1) if line.strip()])
    none: list[str | None] = [None] * len(paths)
    return _manifest("list", path, path.parent, paths, none, none, _Skipped())


def _plausible_path(line: bytes) -> bool:
    return len(line) < 4096 and not any(byte < 9 for byte in line)


def _scan_csv(path: Path) -> Manifest:
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, dict[str, str]]] = []
    ended = 0  # line of the end of the last record that could be read
    try:
        columns = list(reader.fieldnames or [])
        ended = reader.line_num
        for record in reader:
            records.append((reader.line_num, record))
            ended = reader.line_num
    except csv.Error as error:
        raise SourceError(f"{path}, line {ended + 1}: not CSV: {error}") from error
    if "path" not in columns or "label" not in columns:
        raise SourceError(
            f"{path}, line 1: the columns are {', '.join(columns) or 'none'}; needed are path,label and "
            f"optionally split"
        )
    if len(set(columns)) < len(columns):
        raise SourceError(f"{path}, line 1: a column stands there twice: {', '.join(columns)}")
    lines: list[tuple[int, bytes]] = []
    labels: list[str | None] = []
    splits: list[str | None] = []
    for number, record in records:
        if not record["path"] or None in record:
            raise SourceError(f"{path}, line {number}: needs a path and at most {len(columns)} columns")
        if "\0" in (record["label"] or "") + (record.get("split") or ""):
            raise SourceError(f"{path}, line {number}: a label or split holds a zero byte")
        if any("\udc80" <= letter <= "\udcff" for letter in (record["label"] or "") + (record.get("split") or "")):
            raise SourceError(f"{path}, line {number}: the label or split is not UTF-8; save the file as UTF-8")
        lines.append((number, os.fsencode(record["path"])))
        labels.append(record["label"] or None)
        splits.append(record.get("split") or None)
    return _manifest("csv", path, path.parent, _normalised(path, lines), labels, splits, _Skipped())


def _normalised(source: Path, lines: list[tuple[int, bytes]]) -> list[bytes]:
    seen: dict[bytes, int] = {}
    paths = []
    for number, line in lines:
        if b"\0" in line:
            raise SourceError(f"{source}, line {number}: {printable(line)} holds a zero byte; no file is called so")
        normal = os.path.normpath(line)
        if normal in seen:
            raise SourceError(
                f"{source}: {printable(normal)} stands on line {seen[normal]} and again on line {number}; "
                f"each image may stand there once"
            )
        seen[normal] = number
        # After a link, a/link/../b is not a/b: such a path is kept as it was written.
        paths.append(line if b".." in line.split(b"/") else normal)
    return paths
