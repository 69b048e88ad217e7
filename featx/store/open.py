"""Open a features file, or several as one."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import FileFormatError, PlanMismatch, UnknownLayer
from featx.runtime.text import in_order
from featx.status import Status
from featx.store.reader import Features, flat_rows
from featx.store.schema import differences, essence
from featx.store.self_check import changed_since_made

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_OWN = ("images", "count", "shard", "versions")  # what may differ between files that are opened as one


def open_features(
    path: str | os.PathLike[str], *more: str | os.PathLike[str], partial: bool = False, check: bool = True
) -> Features:
    """Open a features file for reading, or several with the same recipe and layers as one.

    Args:
        more: further files, whose rows follow; their classes and splits are joined by name.
        partial: also accept a file that is not finished; its pending rows mean nothing.
        check: compare names, labels, splits and provenance with their checksums; those of the rows are left to
            `featx verify`.

    Raises:
        FileFormatError: not there, not a features file, not finished, or changed since it was made.
        PlanMismatch: several files that were made with different settings.

    Example:
        features = featx.open_features("photos.h5")
        features["fc7"]              # (N, 4096) array, mapped from the file
        X, y = features.xy("fc7")    # the labelled rows, for scikit-learn
    """
    files = [Features(Path(one)) for one in (path, *more)]
    for features in files:
        if not partial and not features.complete:
            raise FileFormatError(
                f"{features.path} is not finished: {features.count(Status.PENDING)} of {len(features)} images are "
                f"left to do. Run the same extract command again"
            )
        if check and (changed := changed_since_made(features)):
            raise FileFormatError(
                f"{features.path} was changed since it was made: {changed}. "
                f"Extract it again; `featx verify` says more"
            )
    return files[0] if len(files) == 1 else JoinedFeatures(files)


def paths_of(given: Paths) -> list[Path]:
    """One path or several, as a list."""
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(one) for one in given]


def named_layers(features: Features, spec: str) -> list[str]:
    """The layers of a file that names, ranges (in the file's order) and globs stand for, in the file's order.

    Raises:
        UnknownLayer: one that the file does not hold.
    """
    held = list(features)
    if spec == "all":
        return held
    chosen: set[str] = set()
    for word in (word.strip() for word in spec.split(",")):
        first, _, last = word.partition("-")
        if word in held:
            chosen.add(word)
        elif first in held and last in held:
            chosen |= set(held[held.index(first) : held.index(last) + 1])
        elif matching := fnmatch.filter(held, word):
            chosen |= set(matching)
        else:
            raise UnknownLayer(f"{features.path} holds no layer {word!r}; it holds {', '.join(held)}")
    return [name for name in held if name in chosen]


class JoinedFeatures(Features):
    """Several features files as one: their rows behind each other.

    A layer's array is copied into memory when it is asked for; `xy` copies only the rows it gives.
    """

    def __init__(self, files: Sequence[Features]) -> None:
        first = files[0]
        for other in files[1:]:
            changed = differences(_recipe(first), _recipe(other))
            if changed:
                raise PlanMismatch(
                    f"{first.path} and {other.path} were made with different settings: {changed[0].key} "
                    f"{changed[0].stored} in one, {changed[0].asked} in the other"
                )
        self.files = list(files)
        self.path = Path(" + ".join(str(file.path) for file in files))
        self.layers, self.provenance = first.layers, first.provenance
        self._extents = first._extents  # of what all of them have alike
        self._last: tuple[str, npt.NDArray[Any]] | None = None  # a layer that was asked for
        self.complete = all(file.complete for file in files)
        self.fingerprint = hashlib.sha256("".join(file.fingerprint for file in files).encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return (JoinedFeatures, (self.files,))

    def __repr__(self) -> str:
        return f"<JoinedFeatures {self.path}: {len(self)} images; {', '.join(self.layers)}>"

    def __len__(self) -> int:
        return sum(map(len, self.files))

    @property
    def source_kind(self) -> str:
        """That of the first file; "csv" if any is of a CSV, whose labels can name several classes."""
        kinds = [file.source_kind for file in self.files]
        return "csv" if "csv" in kinds else kinds[0]

    @cached_property
    def classes(self) -> list[str]:
        return in_order({name for file in self.files for name in file.classes})

    @cached_property
    def splits(self) -> list[str]:
        return sorted({name for file in self.files for name in file.splits})

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        return np.concatenate([_among(self.classes, file.classes, file.labels) for file in self.files])

    @cached_property
    def split_of(self) -> npt.NDArray[np.int32]:
        return np.concatenate([_among(self.splits, file.splits, file.split_of) for file in self.files])

    @cached_property
    def groups(self) -> list[str]:
        if not any(file.groups for file in self.files):
            return []
        return [name for file in self.files for name in (file.groups or [""] * len(file))]

    def _map(self, name: str) -> npt.NDArray[Any]:
        if name.startswith("reduction/"):  # the same in all
            return self.files[0]._map(name)
        if self._last is None or self._last[0] != name:
            self._last = name, np.concatenate([file._map(name) for file in self.files])
        return self._last[1]

    def _rows(self, layer: str, rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        ends = np.cumsum([len(file) for file in self.files])
        parts = []
        for file, end in zip(self.files, ends, strict=True):
            mine = rows[(rows >= end - len(file)) & (rows < end)] - (end - len(file))
            parts.append(flat_rows(file[layer])[mine])
        return np.concatenate(parts)


def _recipe(features: Features) -> dict[str, Any]:
    """What must agree: all that rows depend on but the images and the versions."""
    return {key: value for key, value in essence(features.provenance).items() if key not in _OWN}


def _among(names: list[str], own: list[str], index: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Indices into `own`, -1 for none, as indices into `names`."""
    table = np.array([*(names.index(name) for name in own), -1], np.int32)  # the last entry is for -1
    found: npt.NDArray[np.int32] = table[index]
    return found
