"""Rows of features as Parquet tables, by their numbers: what many machines write for one features file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import UsageError

PLAN = "featx-plan.json"  # what the features file will be, beside the Parquet files
ABOUT = ("status", "sha256", "orientation", "decoder")


def table_of_rows(
    rows: Sequence[int],
    paths: Sequence[bytes],
    about: Mapping[str, npt.NDArray[Any]],
    reasons: Mapping[int, str],
    features: Mapping[str, npt.NDArray[Any]],
) -> Any:
    """A pyarrow table: row, path, status, reason, sha256, orientation, decoder, and a list for each layer.

    Args:
        rows, paths: numbers of the rows in the whole job, and the paths of their images.
        about: the arrays (n, ...) named in `ABOUT`.
        reasons: place in the table -> why an image failed.
        features: {layer: (n, ...)}, flattened in the table.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {
        "row": pa.array(rows, pa.int64()),
        "path": pa.array([os.fsdecode(path).encode(errors="backslashreplace").decode() for path in paths]),
        "status": pa.array(about["status"]),
        "reason": pa.array([reasons.get(place) for place in range(len(rows))], pa.string()),
        "sha256": pa.array([row.tobytes() for row in about["sha256"]], pa.binary(32)),
        "orientation": pa.array(about["orientation"]),
        "decoder": pa.array(about["decoder"]),
    }
    for name, values in features.items():
        if name in columns:
            raise UsageError(f"the layer {name} has the name of another column; ask for it under its node's name")
        width = int(np.prod(values.shape[1:]))
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
    return pa.table(columns)


def rows_of_table(table: Any, layers: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    """A table's arrays again: "row", "reason" (a list), those of `ABOUT`, and "features" {layer: (n, ...)}.

    Args:
        layers: name -> shape of one row and type.
    """
    table = table.combine_chunks()
    count = table.num_rows
    found: dict[str, Any] = {name: table[name].to_numpy() for name in ("row", "status", "orientation", "decoder")}
    found["reason"] = table["reason"].to_pylist()
    hashes = b"".join(table["sha256"].to_pylist())
    found["sha256"] = np.frombuffer(hashes, np.uint8).reshape(count, 32)
    found["features"] = {
        name: np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[name].chunks] or [[]])
        .astype(dtype, copy=False)
        .reshape(count, *shape)
        for name, (shape, dtype) in layers.items()
    }
    return found
