"""Rows of finished features files, copied into one that is being written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import Interrupted
from featx.runtime.signals import Stop
from featx.status import Status
from featx.store.reader import Features
from featx.store.writer import FeatureWriter

BLOCK_BYTES = 64 << 20


def rows_at_once(bytes_per_row: int) -> int:
    """How many rows to copy together."""
    return max(1, BLOCK_BYTES // max(1, bytes_per_row))


def copy_rows(
    source: Features,
    rows: npt.NDArray[np.intp],
    writer: FeatureWriter,
    first: int,
    more: Mapping[str, npt.NDArray[Any]] | None = None,
) -> None:
    """Write some rows of a file as rows `first`, `first` + 1, ... of another.

    Args:
        more: layers (n, ...) that the source does not have, or in another way.
    """
    kept = [layer for layer in source if f"features/{layer}" in writer.datasets and layer not in (more or {})]
    reasons = source.array("images/reason")
    writer.write_block(
        first,
        {**{layer: np.asarray(source[layer][rows]) for layer in kept}, **(more or {})},
        status=source.status[rows],
        sha256=source.sha256[rows],
        orientation=source.orientation[rows],
        decoder=source.decoder[rows],
        reasons={
            place: bytes(reasons[row]).decode(errors="replace") for place, row in enumerate(rows) if reasons[row]
        },
    )


def copy_files(parts: Sequence[Features], writer: FeatureWriter, stop: Stop, advance: Callable[[int], None]) -> None:
    """Write all rows of some files behind each other; what is there already is left alone.

    Raises:
        Interrupted: a signal came.
    """
    first, most = 0, rows_at_once(sum(layer.bytes_per_image for layer in parts[0].layers.values()))
    for part in parts:
        for start in range(0, len(part), most):
            if stop.is_set():
                raise Interrupted(
                    f"stopped by signal {stop.signal}; run the same command again to resume", 128 + (stop.signal or 0)
                )
            rows = np.arange(start, min(start + most, len(part)))
            if (writer.status[first + start : first + start + len(rows)] == Status.PENDING).any():
                copy_rows(part, rows, writer, first + start)
            advance(len(rows))
        first += len(part)


def runs_of(places: Sequence[int], most: int) -> Iterator[slice]:
    """Parts of a sorted sequence whose numbers follow each other, `most` of them at once.

    >>> [*runs_of([3, 4, 5, 9], 2)]
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    start = 0
    for end in range(1, len(places) + 1):
        if end == len(places) or places[end] != places[end - 1] + 1 or end - start == most:
            yield slice(start, end)
            start = end
