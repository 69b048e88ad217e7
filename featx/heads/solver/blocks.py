"""Features as the solver reads them: normalised and centred, at once or in blocks, on the device that computes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.device import upload
from featx.errors import NonFiniteRow
from featx.heads.normalize import Normalizer, row_lengths

BLOCK_BYTES = 64 << 20  # of float32 values read, normalised and multiplied at a time
_MIN_BLOCK_BYTES = 1 << 20
_MIN_COLUMNS = 1024  # a strip of a row's file bytes narrower than a page is read as a whole page all the same


class Blocks:
    """Rows (n, D) of an array, which may be a map of a file larger than memory.

    What the solver sees is x - mean of the normalised rows: see `spaces` for why, and for how the mean comes back.

    Attributes:
        n, d: rows and values.
        mean: (D,) float64 on the device, of the normalised rows; for features in float32 rounded to it, so that the
            difference from it needs no more digits than they have.
        variance: the mean squared distance of the normalised rows from their mean.
        lengths: (n,) float64 on the device, no row is farther from the mean.
    """

    def __init__(
        self,
        values: npt.NDArray[Any],
        rows: npt.NDArray[np.intp] | None,
        normalizer: Normalizer,
        device: torch.device,
        resident_bytes: int,
    ) -> None:
        """Read the features once for their mean.

        Args:
            values: (N, D) floating point.
            rows: the n rows to use, in order; None for all.
            normalizer: applied to every row.
            resident_bytes: if n D float32 values need no more than this they are kept on the device.

        Raises:
            NonFiniteRow: a row holds NaN or infinite values.
        """
        self._values = values
        self._rows = rows
        self._normalizer = normalizer
        self.device = device
        self.n = len(values) if rows is None else len(rows)
        self.d = values.shape[1]
        # A block and its copies on the way, twice, for the next one is read meanwhile.
        self._block_bytes = min(BLOCK_BYTES, max(resident_bytes // 8, _MIN_BLOCK_BYTES))
        self._lengths = np.ones(self.n)
        self._kept: Tensor | None = None
        kept = None
        if 4 * self.n * self.d <= resident_bytes:
            kept = torch.empty(self.n, self.d, device=device)
        total, squares = np.zeros(self.d), np.zeros(self.n)
        for part in self._row_slices():
            block = self._read(part, slice(None))
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                raise NonFiniteRow(part.start + int((~finite).argmax()))
            if normalizer.kind == "l2":
                self._lengths[part] = row_lengths(block)
            block = self._normalised(block, part, slice(None))
            total += block.sum(axis=0, dtype=np.float64)
            squares[part] = np.einsum("nd,nd->n", block, block, dtype=np.float64)
            if kept is not None:
                kept[part] = torch.from_numpy(np.require(block, np.float32, "W"))
        mean = total / self.n
        self.variance = max(float(squares.mean()) - float(mean @ mean), 0.0)
        self._mean = mean if values.dtype == np.float64 else mean.astype(np.float32)
        self.mean = torch.from_numpy(self._mean.astype(np.float64)).to(device)
        self.lengths = torch.from_numpy(np.sqrt(squares)).to(device) + self.mean.norm()
        if kept is not None:
            # In blocks: of float64 features the difference must not need a copy of everything.
            centre = torch.from_numpy(self._mean).to(device)
            for part in self._row_slices():
                kept[part] = kept[part] - centre
            self._kept = kept

    def _row_slices(self) -> list[slice]:
        return _slices(self.n, max(1, self._block_bytes // (4 * self.d)))

    @property
    def resident(self) -> bool:
        """All features are kept on the device."""
        return self._kept is not None

    def rows(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of whole rows, (slice of 0..n, (b, D) tensor), in order."""
        if self._kept is not None and dtype == self._kept.dtype:
            yield slice(0, self.n), self._kept
            return
        yield from self._stream([(part, slice(0, self.d)) for part in self._row_slices()], dtype, by_row=True)

    def columns(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of columns of all rows, (slice of 0..D, (n, w) tensor), in order: one pass over a file."""
        if self._kept is not None and dtype == self._kept.dtype:
            yield slice(0, self.d), self._kept
            return
        width = max(_MIN_COLUMNS, self._block_bytes // (4 * self.n))
        parts = _slices(self.d, width)
        yield from self._stream([(slice(0, self.n), part) for part in parts], dtype, by_row=False)

    def _stream(
        self, parts: list[tuple[slice, slice]], dtype: torch.dtype, by_row: bool
    ) -> Iterator[tuple[slice, Tensor]]:
        """The next block is read by a thread while the last one is used."""
        # The reader's copies belong to the stream that uses them.
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

        def load(rows: slice, columns: slice) -> Tensor:
            with torch.cuda.stream(stream):
                return self._load(rows, columns, dtype)

        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(load, *parts[0])
            for index, (rows, columns) in enumerate(parts):
                block = ahead.result()
                if index + 1 < len(parts):
                    ahead = reader.submit(load, *parts[index + 1])
                yield (rows if by_row else columns), block

    def _load(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        # What is kept is float32: digits beyond that are still in the array.
        if self._kept is not None and self._values.dtype != np.float64:
            return self._kept[rows, columns].to(dtype)
        block = self._normalised(self._read(rows, columns), rows, columns)
        centred = torch.from_numpy(block - self._mean[columns]).to(dtype)
        return upload(centred, self.device)

    def _read(self, rows: slice, columns: slice) -> npt.NDArray[np.floating]:
        found = self._values[rows, columns] if self._rows is None else self._values[self._rows[rows], columns]
        return np.asarray(found, np.float64 if found.dtype == np.float64 else np.float32)

    def _normalised(self, block: npt.NDArray[np.floating], rows: slice, columns: slice) -> npt.NDArray[np.floating]:
        if self._normalizer.kind == "l2":
            return np.asarray(block / self._lengths[rows, None].astype(block.dtype))
        if self._normalizer.mean is not None and self._normalizer.scale is not None:
            standard = (block - self._normalizer.mean[columns]) / self._normalizer.scale[columns]
            return standard.astype(block.dtype)
        return block

    def combine(self, coefficients: Tensor) -> Tensor:
        """(P, n) -> (P, D): sums of the centred rows with these coefficients, in their number type."""
        found = torch.zeros(len(coefficients), self.d, dtype=coefficients.dtype, device=self.device)
        for rows, values in self.rows(coefficients.dtype):
            found.addmm_(coefficients[:, rows], values)
        return found


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]
