"""Rows of features, normalised: read by the processor from memory or a file, or by the device that holds them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.errors import NonFiniteRow
from featx.heads.normalize import BLOCK_BYTES, Normalizer, row_lengths
from featx.runtime.device import upload

Values = npt.NDArray[Any] | Tensor  # (N, D); a tensor lies on the device that computes
_LOADABLE = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


class Reader(Protocol):
    """Some rows (n, D) of an array or a tensor, as blocks of float32 or float64 on the device that computes."""

    is_double: bool

    def look(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Rows for the first time: themselves (b, D), their sum (D,) and their squared lengths (b,), both float64.

        The lengths are rounded as the rows' own numbers are.

        Raises:
            NonFiniteRow: one of them holds NaN or infinite values.
        """

    def read(self, rows: slice, columns: slice, less: Tensor) -> Tensor:
        """Rows that were looked at, minus `less` (w,) of their number type."""


def reader_of(
    values: Values, rows: npt.NDArray[np.intp] | None, normalizer: Normalizer, device: torch.device
) -> Reader:
    """The processor's for its own arrays; a GPU reads its own memory, or blocks of an array as they are."""
    if isinstance(values, Tensor) or device.type == "cuda":
        return _DeviceReader(values, rows, normalizer, device)
    return _ArrayReader(values, rows, normalizer)


class _ArrayReader:
    def __init__(self, values: npt.NDArray[Any], rows: npt.NDArray[np.intp] | None, normalizer: Normalizer) -> None:
        self._values, self._rows, self._normalizer = values, rows, normalizer
        self.is_double = values.dtype == np.float64
        self._lengths = np.ones(len(values) if rows is None else len(rows))

    def look(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        block = self._raw(part, slice(None))
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise NonFiniteRow(part.start + int((~finite).argmax()))
        if self._normalizer.kind == "l2":
            self._lengths[part] = row_lengths(block)
        block = self._normalised(block, part, slice(None))
        with np.errstate(over="ignore"):  # infinite: `Blocks` refuses rows that are so long
            total, squares = block.sum(axis=0, dtype=np.float64), np.vecdot(block, block).astype(np.float64)
        return _own(block), torch.from_numpy(total), torch.from_numpy(squares)

    def read(self, rows: slice, columns: slice, less: Tensor) -> Tensor:
        return torch.from_numpy(self._normalised(self._raw(rows, columns), rows, columns) - less.numpy())

    def _raw(self, rows: slice, columns: slice) -> npt.NDArray[np.floating]:
        found = _part(self._values, self._rows, rows, columns)
        return np.asarray(found, np.float64 if self.is_double else np.float32)

    def _normalised(self, block: npt.NDArray[np.floating], rows: slice, columns: slice) -> npt.NDArray[np.floating]:
        normalizer = self._normalizer
        if normalizer.kind == "l2":
            return np.asarray(block / self._lengths[rows, None].astype(block.dtype))
        if normalizer.mean is not None and normalizer.scale is not None:
            return ((block - normalizer.mean[columns]) / normalizer.scale[columns]).astype(block.dtype)
        return block


class _DeviceReader:
    def __init__(
        self, values: Values, rows: npt.NDArray[np.intp] | None, normalizer: Normalizer, device: torch.device
    ) -> None:
        self._values, self._device, self._kind = values, device, normalizer.kind
        self.is_double = values.dtype in (np.float64, torch.float64)
        self._rows = rows
        # Which rows of a tensor, where it lies.
        self._places = None if rows is None or not isinstance(values, Tensor) else _on(rows, device)
        self._lengths = torch.ones(len(values) if rows is None else len(rows), dtype=torch.float64, device=device)
        self._mean = None if normalizer.mean is None else _on(normalizer.mean, device)
        self._scale = None if normalizer.scale is None else _on(normalizer.scale, device)

    def look(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        block = self._raw(part, slice(None))
        lengths = torch.linalg.vector_norm(block, dim=1, dtype=torch.float64)
        if not lengths.isfinite().all():
            finite = block.isfinite().all(dim=1)
            if not finite.all():
                raise NonFiniteRow(part.start + int((~finite).int().argmax()))
        if self._kind == "l2":
            self._lengths[part] = lengths.where(lengths != 0, 1.0)
        block = self._normalised(block, part, slice(None))
        squares = torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).square()
        return block, block.sum(dim=0, dtype=torch.float64), squares

    def read(self, rows: slice, columns: slice, less: Tensor) -> Tensor:
        return self._normalised(self._raw(rows, columns), rows, columns) - less

    def _raw(self, rows: slice, columns: slice) -> Tensor:
        if not isinstance(self._values, Tensor):
            found = _part(self._values, self._rows, rows, columns)
            block = upload(_own(found if found.dtype in _LOADABLE else found.astype(np.float32)), self._device)
        elif self._places is None:
            block = self._values[rows, columns]
        else:
            block = self._values[:, columns].index_select(0, self._places[rows])
        return block.to(torch.float64 if self.is_double else torch.float32)

    def _normalised(self, block: Tensor, rows: slice, columns: slice) -> Tensor:
        if self._kind == "l2":
            return block / self._lengths[rows, None].to(block.dtype)
        if self._mean is not None and self._scale is not None:
            return ((block - self._mean[columns]) / self._scale[columns]).to(block.dtype)
        return block


def normalizer_for(kind: str, values: Values, rows: npt.NDArray[np.intp]) -> Normalizer:
    """What normalisation of this kind has to know of the rows; as `Normalizer.fit`, where they lie."""
    if not isinstance(values, Tensor):
        return Normalizer.fit(kind, values, rows)
    if kind != "standard":
        return Normalizer(kind)
    places, step = _on(rows, values.device), max(1, BLOCK_BYTES // (8 * values.shape[1]))
    parts = [places[start : start + step] for start in range(0, len(rows), step)]
    mean = torch.stack([values[part].sum(dim=0, dtype=torch.float64) for part in parts]).sum(dim=0) / len(rows)
    squares = torch.zeros_like(mean)
    for part in parts:
        squares += (values[part].double() - mean).square_().sum(dim=0)
    return Normalizer.standard(mean.cpu().numpy(), (squares / len(rows)).cpu().numpy())


def _part(values: npt.NDArray[Any], of: npt.NDArray[np.intp] | None, rows: slice, columns: slice) -> npt.NDArray[Any]:
    return values[rows, columns] if of is None else values[of[rows], columns]


def _own(block: npt.NDArray[Any]) -> Tensor:
    """A tensor of an array; a copy where it may not be written to, as PyTorch asks for."""
    return torch.from_numpy(np.require(block, requirements="W"))


def _on(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
