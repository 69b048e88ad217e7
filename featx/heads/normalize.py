"""What is done to features before a head sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    def fit(cls, kind: str, features: Array) -> Normalizer:
        """Learn what `kind` needs from the training rows (n, D)."""
        if kind != "standard":
            return cls(kind)
        mean = features.mean(axis=0, dtype=np.float64)
        deviation = features.std(axis=0, dtype=np.float64)
        # Of a constant column, what is left after rounding must not be blown up to deviation 1.
        constant = deviation <= 1e-7 * np.abs(mean)
        return cls(kind, mean, np.where(constant | (deviation == 0), 1.0, deviation))

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


def l2_normalized(features: Array) -> Array:
    """Every row divided by its length; a row of zeros stays."""
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    return (features / np.where(lengths == 0, 1.0, lengths)[:, None]).astype(features.dtype)
