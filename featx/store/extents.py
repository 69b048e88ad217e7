"""Where everything lies in a features file that somebody hands us, and whether it is one at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from featx.errors import FileFormatError
from featx.runtime.stored import MAX_JSON_BYTES, Provenance, convert, parse_json
from featx.store.checksums import GROUP
from featx.store.schema import FORMAT, READABLE


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


_CHECKSUMS = {"checksums/static": ("u", 1), "checksums/images": ("u", 1)}


def schema_of(file: h5py.File) -> int:
    """The schema an open features file says it has; 0 if it says none."""
    found = file.attrs.get("schema", 0)
    return int(found) if np.ndim(found) == 0 else 0


def read_extents(file: h5py.File, name: str) -> dict[str, Extent]:
    """The extents of all datasets of an open features file.

    Args:
        name: of the file, for messages.

    Raises:
        FileFormatError: not a features file of a schema known here, or one whose parts do not fit together.
    """
    if _text(file.attrs.get("format", b"")) != FORMAT:
        raise FileFormatError(f"{name} is an HDF5 file but not one of featx's: its attribute `format` is missing")
    schema = schema_of(file)
    if schema not in READABLE:
        raise FileFormatError(
            f"{name} has schema {schema}; this featx reads schema {' and '.join(map(str, READABLE))}"
        )
    extents: dict[str, Extent] = {}
    _collect(file, file, "", extents, name)
    for key, (kind, dimensions) in (_REQUIRED | (_CHECKSUMS if schema > 1 else {})).items():
        if key not in extents:
            raise FileFormatError(f"{name} is damaged: /{key} is missing")
        found = extents[key]
        if found.dtype.kind != kind or len(found.shape) != dimensions:
            raise FileFormatError(f"{name} is damaged: /{key} is {found.dtype} of shape {found.shape}")
    if GROUP in extents and extents[GROUP].dtype.kind != "S":
        raise FileFormatError(f"{name} is damaged: /{GROUP} is {extents[GROUP].dtype}")
    count = extents["images/path"].shape[0]
    for key, extent in extents.items():
        per_image = key.startswith(("images/", "features/", "checksums/")) and key != "checksums/static"
        if per_image and extent.shape[:1] != (count,):
            raise FileFormatError(f"{name} is damaged: /{key} has shape {extent.shape}, not {count} rows")
        if key.startswith("features/") and (extent.dtype.kind != "f" or 0 in extent.shape[1:]):
            raise FileFormatError(f"{name} is damaged: /{key} is {extent.dtype} of shape {extent.shape}")
    return extents


def read_provenance(file: h5py.File, name: str) -> dict[str, Any]:
    """The provenance of an open features file.

    Raises:
        FileFormatError: it is not as `stored.Provenance` declares.
    """
    where = f"{name}, /provenance"
    if file["provenance"].dtype.itemsize > MAX_JSON_BYTES:
        raise FileFormatError(f"{where} is larger than {MAX_JSON_BYTES:,} bytes")
    made: dict[str, Any] = parse_json(file["provenance"][()], where)
    convert(made, Provenance, where)
    return made


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
            _refuse_bomb(item, f"{name}: /{prefix}{key}")
            extents[prefix + key] = Extent(item.id.get_offset(), item.shape, item.dtype)


_MOST_UNPACKED, _MOST_TIMES = 1 << 30, 200


def _refuse_bomb(item: h5py.Dataset, where: str) -> None:
    """Raise FileFormatError for a compressed array that would fill the memory: it is read as a whole."""
    if item.id.get_offset() is not None or item.chunks is None:
        return
    size, stored = int(item.nbytes), int(item.id.get_storage_size())
    if size > _MOST_UNPACKED and size > _MOST_TIMES * stored:
        raise FileFormatError(f"{where} unpacks {stored:,} bytes to {size:,}; repack it without compression")


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
