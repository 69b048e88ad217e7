"""Nearest images in the space of a layer: exact, over all rows, from features that stay on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.store.reader import flat_rows

METRICS = ("cosine", "euclidean")
_BYTES_AT_ONCE = 64 << 20
Floats = npt.NDArray[np.float64]


class Space:
    """Rows of a layer, with a distance.

    Attributes:
        rows: (N, D), mapped or in memory; rows of NaN are nobody's neighbours.
        metric: "cosine" (1 - the cosine of the angle; 1 to a row of zeros), or "euclidean".
        centre: (D,) what is taken from every row first; None for nothing.
    """

    def __init__(self, values: npt.NDArray[Any], metric: str, centre: Floats | None = None) -> None:
        self.rows, self.metric, self.centre = flat_rows(values), metric, centre
        self._known_lengths: Floats | None = None

    def distances(self, query: npt.NDArray[Any]) -> Floats:
        """(N,) in float64 from one image's values to every row; NaN to rows of NaN."""
        one = query.astype(np.float64).reshape(-1)
        one = one if self.centre is None else one - self.centre
        found = np.empty(len(self.rows))
        for start, block in self._blocks():
            place = slice(start, start + len(block))
            if self.metric == "euclidean":
                found[place] = np.sqrt(np.square(block - one).sum(axis=1))
            else:
                scale = self._lengths()[place] * np.sqrt(one @ one)
                found[place] = np.maximum(0.0, 1.0 - block @ one / np.where(scale == 0, 1.0, scale))
        return found

    def nearest(self, query: npt.NDArray[Any], k: int) -> tuple[npt.NDArray[np.intp], Floats]:
        """Rows of the k nearest images, nearest first, and their distances; of equal ones the first row."""
        found = self.distances(query)
        best = np.argsort(found, kind="stable")  # NaN comes last
        best = best[: min(k, int((~np.isnan(found)).sum()))]
        return best, found[best]

    def votes(
        self,
        rows: npt.NDArray[np.intp],
        copies: npt.NDArray[np.intp],
        labels: npt.NDArray[np.int32],
        ks: Sequence[int],
        advance: Callable[[int], None] = lambda done: None,
    ) -> npt.NDArray[np.int32]:
        """(len(ks), n) the class that most of the k nearest images have; of equally frequent ones the nearest one's.

        The image itself and its copies do not vote, nor do images without a label. In float32.

        Args:
            rows: (n,) the images to classify.
            copies: (N,) equal numbers for equal images.
            labels: (N,) -1 for none.
        """
        voters = np.flatnonzero((labels >= 0) & ~np.isnan(self._lengths()))
        found = np.full((len(ks), len(rows)), -1, np.int32)
        count = min(max(ks), len(voters))
        step = max(1, _BYTES_AT_ONCE // max(1, 8 * max(len(voters), self.rows.shape[1])))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            distances = self._between(some, voters)
            distances[copies[some][:, None] == copies[voters][None]] = np.inf
            nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
            order = np.take_along_axis(distances, nearest, 1).argsort(axis=1, kind="stable")
            nearest = np.take_along_axis(nearest, order, 1)
            for place, own in enumerate(nearest):
                ordered = labels[voters[own[np.isfinite(distances[place, own])]]]
                for which, k in enumerate(ks):
                    if len(first := ordered[:k]):
                        counts = np.bincount(first)
                        found[which, start + place] = first[np.argmax(counts[first] == counts.max())]
            advance(len(some))
        return found

    def _between(self, some: npt.NDArray[np.intp], others: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """(n, m) from some rows to others, in float32; squares of euclidean distances."""
        first = self._centred(self.rows[some]).astype(np.float32)
        found = np.empty((len(some), len(others)), np.float32)
        lengths = self._lengths()
        step = max(1, _BYTES_AT_ONCE // max(1, 8 * self.rows.shape[1]))
        for start in range(0, len(others), step):
            part = others[start : start + step]
            found[:, start : start + step] = first @ self._centred(self.rows[part]).astype(np.float32).T
        if self.metric == "euclidean":
            return np.square(lengths[some])[:, None] + np.square(lengths[others])[None] - 2 * found
        scale = lengths[some][:, None] * lengths[others][None]
        return 1.0 - found / np.where(scale == 0, 1.0, scale)

    def _lengths(self) -> Floats:
        if self._known_lengths is None:
            parts = [np.sqrt(np.einsum("nd,nd->n", block, block)) for _, block in self._blocks()]
            self._known_lengths = np.concatenate(parts) if parts else np.empty(0)
        return self._known_lengths

    def _blocks(self) -> Iterator[tuple[int, Floats]]:
        step = max(1, _BYTES_AT_ONCE // max(1, 8 * self.rows.shape[1]))
        for start in range(0, len(self.rows), step):
            yield start, self._centred(self.rows[start : start + step])

    def _centred(self, block: npt.NDArray[Any]) -> Floats:
        found = np.asarray(block, np.float64)
        return found if self.centre is None else found - self.centre


def mean_row(values: npt.NDArray[Any], rows: npt.NDArray[np.intp]) -> Floats:
    """(D,) the mean of some rows, in float64."""
    flat = flat_rows(values)
    total = np.zeros(flat.shape[1])
    step = max(1, _BYTES_AT_ONCE // max(1, 8 * flat.shape[1]))
    for start in range(0, len(rows), step):
        total += flat[rows[start : start + step]].sum(axis=0, dtype=np.float64)
    return total / max(1, len(rows))
