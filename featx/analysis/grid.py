"""Points of a map into the cells of a grid, one each, so that no image covers another."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

MOST_EXACT = 2500  # points; the exact assignment takes cubic time
_BLOCK = 30  # cells on a side of what is improved at once
_ROUNDS = 2
Floats = npt.NDArray[np.float64]
Cells = npt.NDArray[np.intp]


def to_grid(points: Floats) -> Cells:
    """(N, 2) row and column of each point in a grid that is as square as can be, near to where it was.

    Up to 2,500 points the sum of squared distances is the least there is. For more, the points are split into halves
    in turns along both axes, and then blocks of 30 x 30 cells, which overlap, are improved.

    Source:
        Linear assignment: Jonker & Volgenant 1987, as in SciPy. On grids of images: Quadrianto et al., Kernelized
        sorting, 2010.
    """
    count = len(points)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    low, high = points.min(axis=0), points.max(axis=0)
    places = (points - low) / np.where(high > low, high - low, 1.0) * (columns - 1, rows - 1)
    if count <= MOST_EXACT:
        cells = np.stack(np.divmod(np.arange(rows * columns), columns), 1)
        return _assign(places, cells)
    found = np.empty((count, 2), np.intp)
    _split(places, np.arange(count), (0, 0, rows, columns), found)
    for _ in range(_ROUNDS):
        for shift in (0, _BLOCK // 2):
            for top in range(-shift, rows, _BLOCK):
                for left in range(-shift, columns, _BLOCK):
                    inside = np.flatnonzero(
                        (found[:, 0] >= top) & (found[:, 0] < top + _BLOCK)
                        & (found[:, 1] >= left) & (found[:, 1] < left + _BLOCK)
                    )  # fmt: skip
                    if len(inside) > 1:
                        found[inside] = _assign(places[inside], found[inside])
    return found


def _assign(places: Floats, cells: Cells) -> Cells:
    """The cell of each point; there are as many cells as points, or more."""
    far = np.square(places[:, None, 0] - cells[None, :, 1]) + np.square(places[:, None, 1] - cells[None, :, 0])
    _, chosen = linear_sum_assignment(far)
    found: Cells = cells[chosen]
    return found


def _split(places: Floats, points: Cells, box: tuple[int, int, int, int], found: Cells) -> None:
    """Share out a box of cells (top, left, height, width) among some points, which fit into it."""
    top, left, height, width = box
    if not len(points):
        return
    if height == width == 1:
        found[points[0]] = top, left
        return
    axis = 0 if width >= height else 1  # of the places: x first
    half = (width if axis == 0 else height) // 2
    first_cells = half * (height if axis == 0 else width)
    ordered = points[np.argsort(places[points, axis], kind="stable")]
    free = height * width - len(points)
    # Empty cells are shared out in proportion.
    first = min(first_cells, len(points), first_cells - round(free * first_cells / (height * width)))
    first = max(first, len(points) - (height * width - first_cells))
    if axis == 0:
        _split(places, ordered[:first], (top, left, height, half), found)
        _split(places, ordered[first:], (top, left + half, height, width - half), found)
    else:
        _split(places, ordered[:first], (top, left, half, width), found)
        _split(places, ordered[first:], (top + half, left, height - half, width), found)
