"""Features in the formats of other programs: NumPy, MATLAB, CSV, Parquet, the embedding projector.

Every writer goes through the rows in portions, so that memory does not grow with their number; MATLAB's takes one
layer at a time.
"""

from __future__ import annotations

import csv
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import UsageError
from featx.runtime.text import format_bytes, printable
from featx.status import Status
from featx.store.reader import Features, flat_rows

_ROWS_AT_ONCE = 4096
_MOST_IN_MAT = 2**31 - 1  # bytes of one variable of a version 5 file
_COLUMNS = ("path", "label", "split", "status")


@dataclass(frozen=True)
class Selection:
    """What is exported of a features file.

    Attributes:
        layers: their names, in the file's order.
        rows: places of the rows, in the file's order.
    """

    features: Features
    layers: list[str]
    rows: npt.NDArray[np.intp]

    def table(self, *, raw: bool = False) -> Iterator[tuple[str, str, str, str]]:
        """Path, name of the label, name of the split (both empty for none) and status of each row.

        Args:
            raw: names as the system has them, for a file written with surrogateescape; otherwise what is no UTF-8
                is escaped.
        """
        features = self.features
        as_text = os.fsdecode if raw else printable
        for row in self.rows.tolist():
            label, split = int(features.labels[row]), int(features.split_of[row])
            yield (
                as_text(features.raw_paths[row]), as_text(features.classes[label]) if label >= 0 else "",
                as_text(features.splits[split]) if split >= 0 else "", Status(features.status[row]).name.lower(),
            )  # fmt: skip

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Classes and splits; what is no UTF-8 is escaped."""
        return [printable(name) for name in self.features.classes], [printable(name) for name in self.features.splits]

    def portions(self, layer: str) -> Iterator[npt.NDArray[Any]]:
        """(n, ...) of the rows of a layer, a few thousand at a time."""
        values = self.features[layer]
        for first in range(0, len(self.rows), _ROWS_AT_ONCE):
            yield np.asarray(values[self.rows[first : first + _ROWS_AT_ONCE]])

    def shape(self, layer: str) -> tuple[int, ...]:
        return (len(self.rows), *self.features.layers[layer].shape)

    def dtype(self, layer: str) -> np.dtype[Any]:
        return np.dtype(self.features.layers[layer].dtype)

    def only_layer(self, ending: str) -> str:
        """The only layer.

        Raises:
            UsageError: there are several.
        """
        if len(self.layers) > 1:
            raise UsageError(f"{ending} holds one layer; choose one of {', '.join(self.layers)} with -l")
        return self.layers[0]


def _refuse_same_names(layers: Sequence[str], others: Iterable[str], ending: str) -> None:
    """Raise UsageError for a layer that has the name of something else that is written beside it."""
    for layer in set(layers) & set(others):
        raise UsageError(
            f"{ending} has a place called {layer} of its own; leave that layer out with -l, or write it as .npy"
        )


def write_npz(chosen: Selection, path: Path) -> None:
    """Arrays by the names of the layers, and path, label (index, -1 for none), class names, split, splits, status."""
    features, rows = chosen.features, chosen.rows
    about = {
        "path": np.array([row[0] for row in chosen.table()], dtype=str), "label": features.labels[rows],
        "classes": np.array(chosen.names[0], dtype=str), "split": features.split_of[rows],
        "splits": np.array(chosen.names[1], dtype=str), "status": features.status[rows],
        "provenance": np.array(json.dumps(features.provenance)),
    }  # fmt: skip
    _refuse_same_names(chosen.layers, about, ".npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in about.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        for layer in chosen.layers:
            with archive.open(f"{layer}.npy", "w", force_zip64=True) as file:
                _write_npy(chosen, layer, file)


def write_npy(chosen: Selection, path: Path) -> None:
    """One array (N, ...)."""
    layer = chosen.only_layer(".npy")
    with path.open("wb") as file:
        _write_npy(chosen, layer, file)


def _write_npy(chosen: Selection, layer: str, file: Any) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(chosen.dtype(layer)), "fortran_order": False,
              "shape": chosen.shape(layer)}  # fmt: skip
    np.lib.format.write_array_header_2_0(file, header)
    for part in chosen.portions(layer):
        file.write(np.ascontiguousarray(part).data)


def write_csv(chosen: Selection, path: Path) -> None:
    """A row for each image: path, label, split, status, and a column for each value of a layer."""
    layer = chosen.only_layer(".csv")
    width = int(np.prod(chosen.shape(layer)[1:]))
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *(f"{layer}_{index}" for index in range(width))])
        about = chosen.table(raw=True)
        for part in chosen.portions(layer):
            for values in flat_rows(part):
                writer.writerow([*next(about), *map(_shortest, values)])


def write_tsv(chosen: Selection, path: Path) -> None:
    """Vectors for the embedding projector, without a header; rows that failed must not be among them."""
    layer = chosen.only_layer(".tsv")
    with path.open("w", encoding="ascii") as file:
        for part in chosen.portions(layer):
            file.writelines("\t".join(map(_shortest, values)) + "\n" for values in flat_rows(part))


def write_metadata(chosen: Selection, path: Path) -> None:
    """The projector's table of names, in the order of the vectors."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("\t".join(_COLUMNS) + "\n")
        file.writelines("\t".join(re.sub(r"[\t\r\n]", " ", word) for word in row) + "\n" for row in chosen.table())


def _shortest(value: np.floating[Any]) -> str:
    """The shortest text that is this value again."""
    return np.format_float_scientific(value, trim="-") if 0 < abs(value) < 1e-4 else str(value)


def write_mat(chosen: Selection, path: Path) -> None:
    """MATLAB variables: layers as (N, ...) single, path, label (index from 1, 0 for none), classes, split, splits.

    Raises:
        UsageError: a layer is larger than the format allows.
    """
    from scipy.io import savemat

    features, rows = chosen.features, chosen.rows
    names = {layer: _matlab_name(layer) for layer in chosen.layers}
    if len(set(names.values())) < len(names):
        raise UsageError(f"in MATLAB {', '.join(names)} would have the same names; choose one with -l")
    for layer in chosen.layers:
        needed = int(np.prod(chosen.shape(layer))) * max(4, chosen.dtype(layer).itemsize)
        if needed > _MOST_IN_MAT:
            raise UsageError(
                f"{layer} takes {format_bytes(needed)}, and a variable of a .mat file 2.1 GB at most; MATLAB reads "
                f"the features file itself: h5read('{features.path.name}', '/features/{layer}')"
            )
    about = {
        "path": np.array([row[0] for row in chosen.table()], dtype=object),
        "label": (features.labels[rows] + 1).astype(np.int32), "classes": np.array(chosen.names[0], dtype=object),
        "split": (features.split_of[rows] + 1).astype(np.int32), "splits": np.array(chosen.names[1], dtype=object),
        "status": features.status[rows], "layers": np.array(chosen.layers, dtype=object),
    }  # fmt: skip
    _refuse_same_names([*names.values()], about, ".mat")
    with path.open("wb") as file:
        savemat(file, about, oned_as="column")
        for layer, name in names.items():
            values = np.concatenate([*chosen.portions(layer), np.empty((0, *chosen.shape(layer)[1:]), np.float32)])
            wide = values.astype(np.float32) if values.dtype == np.float16 else values
            savemat(file, {name: wide}, oned_as="column")


def _matlab_name(layer: str) -> str:
    """A layer's name as that of a MATLAB variable: letters, digits and underscores, a letter first.

    >>> _matlab_name("fc6:pre"), _matlab_name("0.conv")
    ('fc6_pre', 'x0_conv')
    """
    name = re.sub(r"\W", "_", layer)
    return name if name[:1].isalpha() else f"x{name}"


def write_parquet(chosen: Selection, path: Path) -> None:
    """Columns path, label, split, status, sha256, and one of fixed-size lists for each layer, flattened.

    The shapes and the provenance are in the schema's metadata, under "featx".

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError("Parquet needs pyarrow: pip install pyarrow") from None
    features = chosen.features
    _refuse_same_names(chosen.layers, (*_COLUMNS, "sha256"), ".parquet")
    widths = {layer: int(np.prod(chosen.shape(layer)[1:])) for layer in chosen.layers}
    lists = [(layer, pa.list_(pa.from_numpy_dtype(chosen.dtype(layer)), width)) for layer, width in widths.items()]
    shapes = {layer: list(features.layers[layer].shape) for layer in chosen.layers}
    about = {"featx": json.dumps({"shapes": shapes, "provenance": features.provenance})}
    texts = [(name, pa.string()) for name in _COLUMNS]
    schema = pa.schema([*texts, ("sha256", pa.binary(32)), *lists], metadata=about)
    rows, table = chosen.rows, chosen.table()
    with pq.ParquetWriter(path, schema) as writer:
        for number, parts in enumerate(zip(*(chosen.portions(layer) for layer in chosen.layers), strict=True)):
            own = rows[number * _ROWS_AT_ONCE :][: len(parts[0])]
            columns = list(zip(*(next(table) for _ in own), strict=True))
            empty_as_none = [[value or None for value in column] for column in columns]
            hashes = [features.sha256[row].tobytes() for row in own]
            arrays = [
                pa.FixedSizeListArray.from_arrays(pa.array(flat_rows(part).reshape(-1)), widths[layer])
                for layer, part in zip(chosen.layers, parts, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays([*map(pa.array, empty_as_none), pa.array(hashes, pa.binary(32)),
                                                     *arrays], schema=schema))  # fmt: skip


WRITERS: dict[str, Callable[[Selection, Path], None]] = {
    ".npz": write_npz, ".npy": write_npy, ".mat": write_mat, ".csv": write_csv, ".parquet": write_parquet,
    ".tsv": write_tsv,
}  # fmt: skip
