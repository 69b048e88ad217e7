"""The features file, schema 1: what is in it and where its bytes lie.

    /features/<layer>    (N, D) or (N, C, H, W)  float32 | float16; attributes node, relu, shape, pooling
    /images/path         (N,) fixed-length bytes, as the file system has them, padded with zeros
    /images/label        (N,) int32, index into /classes, -1 = none
    /images/split        (N,) int32, index into /splits, -1 = none
    /images/group        (N,) UTF-8, what must not be divided, as a patient; only where the list has such a column
    /images/status       (N,) uint8, 0 pending, 1 done, 2.. a kind of failure: the row is NaN
    /images/reason       (N,) fixed-length UTF-8: why an image failed, empty if it did not
    /images/sha256       (N, 32) uint8, of the image file's bytes
    /images/orientation  (N,) uint8, EXIF orientation, 1 = upright
    /images/decoder      (N,) uint8, what made the pixels: 0 Pillow, 1 nvJPEG, 2 libjpeg-turbo and PyTorch
    /classes             (K,) UTF-8
    /splits              (S,) UTF-8
    /reduction/<layer>/  of layers that --reduce made smaller: components, mean, explained_variance of a PCA; the
                         matrix of a random projection in compressed sparse rows: data, indices, indptr
    /provenance          one JSON text: everything the features depend on
    attributes           format = "featx", schema = 1, complete = 0 | 1, fingerprint

All datasets are contiguous, little-endian, in C order and allocated when the file is made, so any program can
map them. Nothing in the file depends on the clock, the host's name, the number of workers or on how often the
run was interrupted: the same settings for the same files on the same machine give the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from featx.errors import FileFormatError
from featx.runtime.files import memory_file
from featx.store.checksums import GROUP, static_checksum

FORMAT = "featx"
SCHEMA = 2
READABLE = (1, 2)  # schema 1 has no checksums
REASON_BYTES = 120
_COPIED_AT_ONCE = 1 << 20
_ALIGNMENT = 64  # bytes: every array starts where any processor likes to read
_HEAD_BYTES = 1 << 16  # the root's attributes are created first and lie well within this


@dataclass(frozen=True)
class LayerSpec:
    """One dataset under /features.

    Attributes:
        shape: of one row, after pooling.
        dtype: "float32" or "float16".
    """

    name: str
    node: str
    relu: str
    pooling: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes_per_image(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class FilePlan:
    """Everything about a features file that is known before the first image is read.

    Attributes:
        paths, labels, split_of, groups: N each; groups may be empty.
        provenance: plain values; must not depend on when, where or in how many pieces the job runs.
        projections: what reduced layers were projected with, by name; the provenance has their SHA-256.
    """

    paths: Sequence[bytes]
    labels: Sequence[int]
    classes: Sequence[str]
    split_of: Sequence[int]
    splits: Sequence[str]
    layers: Sequence[LayerSpec]
    provenance: Mapping[str, Any]
    projections: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    groups: Sequence[str] = ()

    @property
    def provenance_json(self) -> str:
        return json.dumps(self.provenance, indent=1, ensure_ascii=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the rows depend on, hexadecimal: two files with the same one hold the same rows."""
        return hashlib.sha256(json.dumps(essence(self.provenance), sort_keys=True).encode()).hexdigest()

    @property
    def bytes_total(self) -> int:
        """Size of the finished file, to within a few kilobytes."""
        per_image = sum(layer.bytes_per_image for layer in self.layers)
        checksums = 8 * (1 + len(self.layers))
        return len(self.paths) * (per_image + self._path_bytes + REASON_BYTES + 4 + 4 + 1 + 1 + 1 + 32 + checksums)

    @property
    def _path_bytes(self) -> int:
        return max(map(len, self.paths), default=1)

    def small_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The datasets that are known beforehand, by name."""
        arrays = {
            "images/path": np.array(self.paths, f"S{self._path_bytes}"),
            "images/label": np.array(self.labels, "<i4"),
            "images/split": np.array(self.split_of, "<i4"),
            "classes": _utf8(self.classes),
            "splits": _utf8(self.splits),
            "provenance": np.array(self.provenance_json.encode()),
            **self.projections,
            **({GROUP: _utf8(self.groups)} if self.groups else {}),
        }
        attributes = {layer.name: attributes_of(layer) for layer in self.layers}
        return arrays | {"checksums/static": np.array([static_checksum(arrays, self.provenance, attributes)], "<u8")}

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of every dataset, by name, in the order they lie in the file."""
        count = len(self.paths)
        known = {name: (a.shape, a.dtype) for name, a in self.small_arrays().items()}
        return known | {
            "images/status": ((count,), np.dtype("u1")),
            "images/orientation": ((count,), np.dtype("u1")),
            "images/decoder": ((count,), np.dtype("u1")),
            "images/reason": ((count,), np.dtype(f"S{REASON_BYTES}")),
            "images/sha256": ((count, 32), np.dtype("u1")),
            **{
                f"features/{layer.name}": ((count, *layer.shape), np.dtype(layer.dtype).newbyteorder("<"))
                for layer in self.layers
            },
            "checksums/images": ((count,), np.dtype("<u8")),
            **{f"checksums/features/{layer.name}": ((count,), np.dtype("<u8")) for layer in self.layers},
        }


def attributes_of(layer: LayerSpec) -> dict[str, Any]:
    """What the file says of a layer in its attributes, as plain values."""
    return {"node": layer.node, "relu": layer.relu, "pooling": layer.pooling, "shape": list(layer.shape)}


def essence(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a provenance that rows depend on: not how it was asked for, nor where the images lie."""
    return {
        key: value for key, value in provenance.items() if key not in ("command", "request", "source", "hardware")
    }


def _utf8(texts: Sequence[str]) -> npt.NDArray[Any]:
    encoded = [text.encode("utf-8", errors="surrogateescape") for text in texts]
    return np.array(encoded, f"S{max(map(len, encoded), default=1) or 1}")


_UTF8_NAMES = {"classes", "splits", "provenance", "images/reason", GROUP}


def write_skeleton(path: Path, plan: FilePlan) -> None:
    """Make a complete, closed HDF5 file in which every feature is still to be written.

    HDF5 writes it in memory, and its bytes are written here: HDF5 itself does not survive a full disk.

    Args:
        path: a file that may be overwritten; not the final name.
    """
    with memory_file() as memory:
        _write_hdf5(memory, plan)
        _copy_written(memory.fileno(), path)


def _copy_written(memory: int, path: Path) -> None:
    """Copy a file in memory of which few pages were ever written; the others stay holes."""
    size = os.fstat(memory).st_size
    with path.open("r+b" if path.exists() else "wb", buffering=0) as file:
        start = 0
        while start < size:
            try:
                start = os.lseek(memory, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    break
                raise
            end = os.lseek(memory, start, os.SEEK_HOLE)
            while start < end:
                content = os.pread(memory, min(end - start, _COPIED_AT_ONCE), start)
                file.seek(start)
                view = memoryview(content)
                while view:
                    view = view[file.write(view) :]
                start += len(content)
        file.truncate(size)


def _write_hdf5(memory: IO[bytes], plan: FilePlan) -> None:
    layout = {"libver": "earliest", "alignment_threshold": 1, "alignment_interval": _ALIGNMENT}
    with h5py.File(memory, "w", driver="fileobj", **layout) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs.create("schema", SCHEMA, dtype="<i4")
        file.attrs.create("complete", 0, dtype="u1")
        file.attrs["fingerprint"] = np.bytes_(plan.fingerprint)
        for name, (shape, dtype) in plan.arrays().items():
            _allocate(file, name, shape, dtype)
        for layer in plan.layers:
            attributes = file[f"features/{layer.name}"].attrs
            attributes["node"] = np.bytes_(layer.node)
            attributes["relu"] = np.bytes_(layer.relu)
            attributes["pooling"] = np.bytes_(layer.pooling)
            attributes["shape"] = np.array(layer.shape, "<i8")
        for name, array in plan.small_arrays().items():
            if array.size:
                target = file[name].id
                target.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array), target.get_type())


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """A contiguous dataset whose place in the file is fixed now and which nothing is written into."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # else the second it was made in is part of its bytes
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    if name in _UTF8_NAMES:
        kind = h5py.h5t.py_create(h5py.string_dtype("utf-8", dtype.itemsize), logical=True)
    else:
        kind = h5py.h5t.py_create(dtype, logical=True)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, name.encode(), kind, space, properties, links)


def complete_offset(path: Path) -> int:
    """Where in a file that featx has written the one byte of the attribute `complete` lies.

    An HDF5 attribute message of version 1 is its name padded to 8 bytes, the type (16 bytes for an integer), the
    space (8 bytes for a scalar) and the value. `test_schema.py` holds this against h5py.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    name = b"complete\0"
    position = head.find(name)
    if position < 0:
        raise FileFormatError(f"{path} is damaged: it has no attribute `complete`")
    return position + 16 + 16 + 8


class Difference(NamedTuple):
    """One entry that two plans disagree on, as text: `crop 224, now 256`."""

    key: str
    stored: str
    asked: str

    def __str__(self) -> str:
        if self.key == "images":
            return "other images, labels or splits"
        return f"{self.key} {self.stored}, now {self.asked}"


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[Difference]:
    """What two plans disagree on; an entry of `request` is named as the option it was given by.

    >>> [str(one) for one in differences({"request": {"batch_size": None}}, {"request": {"batch_size": 4}})]
    ['--batch-size default, now 4']
    """
    found: list[Difference] = []
    for key in sorted({*stored, *asked}):
        have, want = stored.get(key), asked.get(key)
        if have == want:
            continue
        if isinstance(have, Mapping) and isinstance(want, Mapping):
            found += differences(have, want, "--" if key == "request" else f"{prefix}{key}.")
        else:
            name = key.replace("_", "-") if prefix == "--" else key
            found.append(Difference(f"{prefix}{name}", _brief(have, prefix), _brief(want, prefix)))
    return found


def _brief(value: Any, prefix: str) -> str:
    nothing = "default" if prefix == "--" else "none"
    text = nothing if value is None else json.dumps(value) if not isinstance(value, str) else value
    if re.fullmatch("[0-9a-f]{64}", text):  # a SHA-256
        return text[:12] + "..."
    return text if len(text) <= 60 else text[:57] + "..."


def partial_path(path: Path) -> Path:
    """The name a features file has while it is being filled."""
    return path.with_name(path.name + ".partial")
