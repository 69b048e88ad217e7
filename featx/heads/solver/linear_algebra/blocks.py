"""Features as the solver reads them: normalised and centred, at once or in blocks, on the device that computes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.errors import UsageError
from featx.heads.normalize import Normalizer
from featx.heads.solver.linear_algebra.matmul import add_product
from featx.heads.solver.linear_algebra.readers import Values, reader_of

BLOCK_BYTES = 64 << 20  # of float32 values read, normalised and multiplied at a time
_MIN_BLOCK_BYTES = 1 << 20
_LONGEST = 1e15  # of a row: float32 holds the sum of a hundred million products of such rows
_MIN_COLUMNS = 1024  # a strip of a row's file bytes narrower than a page is read as a whole page all the same


class Blocks:
    """Rows (n, D) of an array, which may be a map of a file larger than memory, or of a tensor on the device.

    What the solver sees is x - mean of the normalised rows: see `spaces` for why, and for how the mean comes back.

    Attributes:
        n, d: rows and values.
        mean: (D,) float64 on the device, of the normalised rows; for features in float32 rounded to it, so that the
            difference from it needs no more digits than they have.
        variance: the mean squared distance of the normalised rows from their mean.
        lengths: (n,) float64 on the device, no row is farther from the mean.
        products: the name, without its ending, of the file that keeps the products of the rows; None to keep none.
    """

    def __init__(
        self,
        values: Values,
        rows: npt.NDArray[np.intp] | None,
        normalizer: Normalizer,
        device: torch.device,
        resident_bytes: int,
        products: Path | None = None,
    ) -> None:
        """Read the features once for their mean.

        Args:
            values: (N, D) floating point.
            rows: the n rows to use, in order; None for all.
            normalizer: applied to every row.
            resident_bytes: if n D float32 values need no more than this they are kept on the device.

        Raises:
            NonFiniteRow: a row holds NaN or infinite values.
            UsageError: rows so long that float32 has no room for their products.
        """
        self._reader = reader_of(values, rows, normalizer, device)
        self.products = products
        self.device = device
        self.n = len(values) if rows is None else len(rows)
        self.d = values.shape[1]
        # A block and its copies on the way, twice, for the next one is read meanwhile.
        self._block_bytes = min(BLOCK_BYTES, max(resident_bytes // 8, _MIN_BLOCK_BYTES))
        self._kept: Tensor | None = None
        kept = None
        if 4 * self.n * self.d <= resident_bytes:
            kept = torch.empty(self.n, self.d, device=device)
        total, squares = (torch.zeros(size, dtype=torch.float64, device=device) for size in (self.d, self.n))
        for part in self._row_slices():
            block, of_block, squares[part] = self._reader.look(part)
            total += of_block
            if kept is not None:
                kept[part] = block
        if not float(squares.max()) <= _LONGEST**2:
            raise UsageError(
                f"the features have rows longer than {_LONGEST:g}, whose products float32 cannot hold; "
                "bring them to length 1 (--normalize l2) or standardise them (--normalize standard)"
            )
        mean = total / self.n
        self.variance = max(float(squares.mean()) - float(mean @ mean), 0.0)
        self._centre = mean if self._reader.is_double else mean.float()
        self.mean = self._centre.double()
        rounding = 1 + 8 * torch.finfo(torch.float32).eps
        self.lengths = (squares.sqrt() + self.mean.norm()) * rounding
        if kept is not None:
            # In blocks: a centre in float64 must not need a copy of everything.
            for part in self._row_slices():
                kept[part].sub_(self._centre)
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
            prefetched = reader.submit(load, *parts[0])
            for index, (rows, columns) in enumerate(parts):
                block = prefetched.result()
                if index + 1 < len(parts):
                    prefetched = reader.submit(load, *parts[index + 1])
                yield (rows if by_row else columns), block

    def _load(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        # What is kept is float32: digits beyond that are still in the features.
        if self._kept is not None and not self._reader.is_double:
            return self._kept[rows, columns].to(dtype)
        return self._reader.read(rows, columns, self._centre[columns]).to(dtype)

    def combine(self, coefficients: Tensor) -> Tensor:
        """(P, n) -> (P, D): sums of the centred rows with these coefficients, in their number type."""
        found = torch.zeros(len(coefficients), self.d, dtype=coefficients.dtype, device=self.device)
        for rows, values in self.rows(coefficients.dtype):
            add_product(found, coefficients[:, rows], values)
        return found


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]
