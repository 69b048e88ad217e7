"""Where everything lies in a features file that somebody hands us, and whether it is one at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from featx.errors import FileFormatError
from featx.store.schema import FORMAT, SCHEMA


@dataclass(frozen=True)
class Extent:
    """Where a dataset lies: `offset` bytes into the file; None for one that is not contiguous."""

    offset: int | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


# What h5py, NumPy and JSON raise on files that are damaged or made to do harm.
READ_ERRORS = (
    OSError, KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RuntimeError,
)  # fmt: skip
# Name -> kinds of NumPy type and number of dimensions.
_REQUIRED = {
    "images/path": ("S", 1),
    "images/label": ("i", 1),
    "images/split": ("i", 1),
    "images/status": ("u", 1),
    "images/reason": ("S", 1),
    "images/sha256": ("u", 2),
    "images/orientation": ("u", 1),
    "images/decoder": ("u", 1),
    "classes": ("S", 1),
    "splits": ("S", 1),
    "provenance": ("S", 0),
}


def read_extents(file: h5py.File, name: str) -> dict[str, Extent]:
    """The extents of all datasets of an open features file.

    Args:
        name: of the file, for messages.

    Raises:
        FileFormatError: not a features file of a schema known here, or one whose parts do not fit together.
    """
    if _text(file.attrs.get("format", b"")) != FORMAT:
        raise FileFormatError(f"{name} is an HDF5 file but not one of featx's: its attribute `format` is missing")
    schema = file.attrs.get("schema", 0)
    if schema != SCHEMA:
        raise FileFormatError(f"{name} has schema {schema}; this featx reads schema {SCHEMA}")
    extents: dict[str, Extent] = {}
    _collect(file, file, "", extents, name)
    for key, (kind, dimensions) in _REQUIRED.items():
        if key not in extents:
            raise FileFormatError(f"{name} is damaged: /{key} is missing")
        found = extents[key]
        if found.dtype.kind != kind or len(found.shape) != dimensions:
            raise FileFormatError(f"{name} is damaged: /{key} is {found.dtype} of shape {found.shape}")
    count = extents["images/path"].shape[0]
    for key, extent in extents.items():
        if key.startswith(("images/", "features/")) and extent.shape[:1] != (count,):
            raise FileFormatError(f"{name} is damaged: /{key} has shape {extent.shape}, not {count} rows")
        if key.startswith("features/") and (extent.dtype.kind != "f" or 0 in extent.shape):
            raise FileFormatError(f"{name} is damaged: /{key} is {extent.dtype} of shape {extent.shape}")
    return extents


def read_provenance(file: h5py.File) -> dict[str, Any]:
    """The provenance of an open features file; any of READ_ERRORS if it is not what it should be."""
    made = json.loads(file["provenance"][()])
    for key, kind in _PROVENANCE.items():
        if not isinstance(made[key], kind):
            raise TypeError(f"/provenance: {key} is no {kind.__name__}")
    for key in ("name", "spec", "sha256"):
        if not isinstance(made["weights"][key], str):
            raise TypeError(f"/provenance: weights.{key} is no text")
    if not all(isinstance(layer.get("node"), str) for layer in made["layers"].values()):
        raise TypeError("/provenance: a layer has no node")
    checked: dict[str, Any] = made
    return checked


_PROVENANCE = {
    "backbone": str, "weights": dict, "preprocess": dict, "exif": bool, "pooling": str, "layers": dict,
    "precision": str, "decode": str, "dtype": str, "batch_size": int, "request": dict, "command": str,
    "source": dict, "images": str, "versions": dict, "hardware": str,
}  # fmt: skip


def _collect(file: h5py.File, group: h5py.Group, prefix: str, extents: dict[str, Extent], name: str) -> None:
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise FileFormatError(f"{name}: /{prefix}{key} is a link; featx reads only what is in the file itself")
        item = group[key]
        if isinstance(item, h5py.Group):
            if prefix.count("/") > 8:
                raise FileFormatError(f"{name}: groups are nested too deeply at /{prefix}")
            _collect(file, item, f"{prefix}{key}/", extents, name)
        elif isinstance(item, h5py.Dataset):
            if item.is_virtual or item.external:
                raise FileFormatError(f"{name}: /{prefix}{key} keeps its values in another file")
            extents[prefix + key] = Extent(item.id.get_offset(), item.shape, item.dtype)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
