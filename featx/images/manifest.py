"""A folder, text list, CSV or zip becomes an ordered manifest: row i of every output is image i of it.

The manifest is made before anything is decoded. Everything that is in the source and not in the manifest is
counted with its reason.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featx.errors import SourceError
from featx.runtime.text import class_name, in_order, printable

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
        kind: "folder", "list", "csv", "stdin", "zip", "tar", "hdf5", "table", "remote" or "video".
        source: the folder, list, CSV, zip, tars, dataset or address; of standard input the working directory.
        root: what the paths are relative to: a folder, or what holds the images (`sources.containers.root_of`).
        paths: N relative POSIX paths as bytes. A list may also hold absolute ones, and the same one more than once.
        labels: N indices into `classes`, -1 for none.
        classes: K names, see `in_order`.
        split_of: N indices into `splits`, -1 for none.
        splits: names such as "train" and "test", sorted.
        groups: N names of what an image belongs to, as a patient or a video, empty for none; () if no image has one.
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
    groups: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digest(self) -> str:
        """SHA-256 over paths, labels, classes, splits and groups, hexadecimal."""
        digest = hashlib.sha256()
        for path, label, split in zip(self.paths, self.labels, self.split_of, strict=True):
            digest.update(b"%d:%s%d,%d;" % (len(path), path, label, split))
        if self.groups:
            digest.update("\0".join((*self.groups, "groups")).encode(errors="surrogateescape"))
        digest.update("\0".join((*self.classes, "", *self.splits)).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def part(self, rows: Sequence[int]) -> Manifest:
        """Some of the images, in the order of `rows`."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            split_of=tuple(self.split_of[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows) if self.groups else (),
        )

    def full_path(self, row: int) -> Path:
        """Where image `row` is; only for sources whose images are files."""
        return self.root / os.fsdecode(self.paths[row])

    def name(self, row: int) -> str:
        """The path of image `row`, fit to be printed."""
        return printable(self.paths[row])


class Skipped:
    """Counts what is skipped, with one example for each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, path: str | bytes) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, printable(path))


def has_image_suffix(path: bytes) -> bool:
    return os.path.splitext(os.fsdecode(path))[1].lower() in IMAGE_SUFFIXES


def label_by_folder(kind: str, root: Path, paths: list[bytes], skipped: Skipped) -> Manifest:
    labels: list[str | None] = []
    splits: list[str | None] = []
    parts_of = [path.split(b"/") for path in paths]
    tops = {os.fsdecode(parts[0]).lower() for parts in parts_of if len(parts) > 1}
    by_split = bool(tops) and tops <= SPLIT_FOLDERS and any(len(parts) > 2 for parts in parts_of)
    if kind in ("zip", "tar") and len(tops) == 1 and not by_split and all(len(parts) > 1 for parts in parts_of):
        inner = label_by_folder("zip", root, [b"/".join(p[1:]) for p in parts_of], Skipped())
        labels = [None if c == NO_LABEL else inner.classes[c] for c in inner.labels]
        splits = [None if c == NO_LABEL else inner.splits[c] for c in inner.split_of]
        return make_manifest(kind, root, root, paths, labels, splits, skipped)
    for parts in parts_of:
        folders = [os.fsdecode(part) for part in parts[:-1]]
        splits.append(folders.pop(0) if by_split and folders else None)
        labels.append(folders[0] if folders else None)
    return make_manifest(kind, root, root, paths, labels, splits, skipped)


def make_manifest(
    kind: str,
    source: Path,
    root: Path,
    paths: list[bytes],
    labels: list[str | None],
    splits: list[str | None],
    skipped: Skipped,
    groups: list[str | None] | None = None,
) -> Manifest:
    if not paths:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.counts.items())
        raise SourceError(f"no images in {printable(str(source))}" + (f" (skipped: {reasons})" if reasons else ""))
    labels = [None if label is None else class_name(label) for label in labels]
    classes = tuple(in_order({label for label in labels if label is not None}))
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
        groups=tuple(name or "" for name in groups) if groups is not None and any(groups) else (),
        skipped=dict(skipped.counts),
        examples=skipped.examples,
    )
