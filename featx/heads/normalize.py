"""What is done to features before a head sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 64 << 20  # of float64 values read at a time
Array = npt.NDArray[np.floating]  # float32 or float64, whichever comes


@dataclass(frozen=True)
class Normalizer:
    """One of: none; l2, every row to length 1; standard, every column to mean 0 and deviation 1.

    Attributes:
        kind: "none", "l2" or "standard".
        mean, scale: (D,) of the training rows, for "standard"; a constant column has scale 1.
    """

    kind: str
    mean: npt.NDArray[np.float64] | None = None
    scale: npt.NDArray[np.float64] | None = None

    @classmethod
    def fit(cls, kind: str, features: npt.NDArray[Any], rows: npt.NDArray[np.intp] | None = None) -> Normalizer:
        """Learn what `kind` needs from the training rows: `rows` of features (N, D), or all; read in blocks."""
        if kind != "standard":
            return cls(kind)
        count = len(features) if rows is None else len(rows)
        step = max(1, BLOCK_BYTES // (8 * features.shape[1]))
        total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for start in range(0, count, step):
            total += _block(features, rows, start, step).sum(axis=0, dtype=np.float64)
        mean = total / count
        for start in range(0, count, step):
            squares += np.square(_block(features, rows, start, step) - mean).sum(axis=0)
        return cls.standard(mean, squares / count)

    @classmethod
    def standard(cls, mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> Normalizer:
        """For columns of this mean and variance, (D,) each."""
        deviation = np.sqrt(variance)
        # Of a constant column, what is left after rounding must not be blown up to deviation 1.
        constant = deviation <= 1e-7 * np.abs(mean)
        return cls("standard", mean, np.where(constant | (deviation == 0), 1.0, deviation))

    def __call__(self, features: Array) -> Array:
        """(n, D) -> (n, D), float32 stays float32."""
        if self.kind == "l2":
            return l2_normalized(features)
        if self.mean is not None and self.scale is not None:
            return ((features - self.mean) / self.scale).astype(features.dtype)
        return features

    def fold(
        self, weights: npt.NDArray[np.float64], bias: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Weights (K, D) and bias (K,) for features that were not standardised: same scores."""
        if self.mean is None or self.scale is None:
            return weights, bias
        folded = weights / self.scale
        return folded, bias - folded @ self.mean


def _block(features: npt.NDArray[Any], rows: npt.NDArray[np.intp] | None, start: int, step: int) -> npt.NDArray[Any]:
    return features[start : start + step] if rows is None else features[rows[start : start + step]]


def row_lengths(features: Array) -> npt.NDArray[np.float64]:
    """(n,) Euclidean lengths, 1 for a row of zeros."""
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    return np.where(lengths == 0, 1.0, lengths)


def l2_normalized(features: Array) -> Array:
    """Every row divided by its length; a row of zeros stays."""
    return (features / row_lengths(features)[:, None]).astype(features.dtype)
