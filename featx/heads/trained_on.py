"""Which images a head or network was trained on, by the first bytes of their SHA-256."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BYTES = 8  # a chance of 1e-7 that two of a million images agree in them
Hashes = npt.NDArray[np.uint8]


def remember(sha256: Hashes) -> Hashes:
    """(n, 8) sorted, without repetitions, of hashes (N, 32); images that could not be read have none."""
    known = sha256[sha256.any(axis=1), :_BYTES]
    found: Hashes = np.unique(known, axis=0) if len(known) else np.zeros((0, _BYTES), np.uint8)
    return found


def together(first: Hashes, second: Hashes | None) -> Hashes:
    """(n, 8) what either of two remembers, each as `remember` gives it."""
    return first if second is None else np.unique(np.concatenate([first, second]), axis=0)


def count_among(sha256: Hashes, trained_on: Hashes | None) -> int | None:
    """How many of some images (N, 32) were trained on; None if that is not known."""
    if trained_on is None:
        return None
    return int(np.isin(_numbers(sha256[:, :_BYTES]), _numbers(trained_on)).sum())


def _numbers(hashes: Hashes) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(hashes).view(np.uint64).reshape(-1)
