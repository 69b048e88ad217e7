"""Representational dissimilarity: how different a layer finds every two images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

METRICS = ("correlation", "cosine", "euclidean")
_BYTES_AT_ONCE = 128 << 20
Floats = npt.NDArray[np.float64]


def dissimilarities(
    values: npt.NDArray[np.floating],
    metric: str,
    out: npt.NDArray[np.floating],
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Fill `out` (N, N) with the dissimilarities of the rows of values (N, D), computed in float64.

    Symmetric, 0 on the diagonal. NaN for rows of NaN, and where the measure is not defined: the correlation of a row
    that is constant, the cosine of a row of zeros. Two blocks of rows are in memory at a time.

    Args:
        metric: "correlation" (1 - Pearson's r), "cosine" (1 - the cosine), or "euclidean".
        advance: is told how many of the N rows are done.

    Source:
        Kriegeskorte, Mur & Bandettini, Representational similarity analysis, Frontiers in Systems Neuroscience 2008.
    """
    count = len(values)
    rows = max(1, _BYTES_AT_ONCE // (8 * max(1, values.shape[1])))
    for first in range(0, count, rows):
        mine = _prepared(values[first : first + rows], metric)
        for second in range(first, count, rows):
            theirs = mine if second == first else _prepared(values[second : second + rows], metric)
            block = _between(mine, theirs, metric)
            if second == first:
                block = (block + block.T) / 2
                np.fill_diagonal(block, np.where(np.isnan(np.diag(block)), np.nan, 0.0))
            out[first : first + rows, second : second + rows] = block
            out[second : second + rows, first : first + rows] = block.T
        advance(len(mine))


def _prepared(values: npt.NDArray[np.floating], metric: str) -> Floats:
    """Rows for which the measure is a product: centred and of length 1, or as they are."""
    rows = np.asarray(values, np.float64)
    if metric == "euclidean":
        return rows
    if metric == "correlation":
        centred = rows - rows.mean(axis=1, keepdims=True)
        # A constant row is not quite zero after its mean is taken off.
        small = np.abs(centred).max(axis=1, initial=0.0) <= 1e-12 * np.abs(rows).max(axis=1, initial=0.0)
        rows = np.where(small[:, None], 0.0, centred)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, np.nan, lengths)


def _between(mine: Floats, theirs: Floats, metric: str) -> Floats:
    if metric != "euclidean":
        return np.asarray(np.clip(1 - mine @ theirs.T, 0.0, 2.0))
    squares = np.square(mine).sum(1)[:, None] + np.square(theirs).sum(1)[None, :] - 2 * mine @ theirs.T
    # Of rows that are nearly the same the difference of large numbers says little: those are computed directly.
    scale = np.square(mine).sum(1)[:, None] + np.square(theirs).sum(1)[None, :]
    near = np.argwhere(squares < 1e-6 * scale)
    for i, j in near:
        squares[i, j] = np.square(mine[i] - theirs[j]).sum()
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))
