"""Suspects of every kind, as one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featx.analysis.suspects.labels import LabelDoubts
from featx.analysis.suspects.photos import fence
from featx.heads.selection.near_duplicates import Neighbourhood

KINDS = {
    "label": "labels that are probably wrong",
    "copy-across-splits": "files of the same bytes in two splits",
    "near-duplicate-across-splits": "near-duplicates in two splits",
    "copy": "files of the same bytes",
    "near-duplicate": "near-duplicates",
    "outlier": "images unlike all others",
    "dark": "dark photographs",
    "blurred": "blurred photographs",
    "odd-size": "odd sizes",
}
_BESIDE = 4  # images shown beside a suspect


@dataclass(frozen=True)
class Suspect:
    """One image and what is suspicious about it.

    Attributes:
        kind: of `KINDS`.
        row: of the features file.
        score: how suspicious; within a kind suspects come in its order, the most suspicious first.
        suggested: the class it may be, for a label.
        detail: in words.
        beside: rows of images that show why: neighbours of other classes, the other of a pair.
    """

    kind: str
    row: int
    score: float
    suggested: str = ""
    detail: str = ""
    beside: list[int] = field(default_factory=list)


def label_suspects(
    rows: npt.NDArray[np.intp],
    found: LabelDoubts,
    labels: npt.NDArray[np.int32],
    classes: Sequence[str],
    near: Neighbourhood,
    everything: npt.NDArray[np.intp],
) -> list[Suspect]:
    """Images whose labels are doubted, the least confident first, beside the nearest images of other classes.

    Args:
        rows: (n,) of the file, that the doubts are of.
        labels: of all rows of the file.
        near: of the rows `everything`, sorted.
    """
    suspects = []
    doubted = np.flatnonzero(found.doubted)
    for place in doubted[np.argsort(found.confidence[doubted], kind="stable")].tolist():
        row = int(rows[place])
        nearest = everything[near.nearest[np.searchsorted(everything, row)]]
        others = [int(one) for one in nearest if labels[one] >= 0 and labels[one] != labels[row]]
        name = classes[int(found.suggested[place])]
        detail = f"probability of its label {found.confidence[place]:.3f}"
        suspects.append(Suspect("label", row, float(found.confidence[place]), name, detail, others[:_BESIDE]))
    return suspects


def duplicate_suspects(
    near: Neighbourhood,
    everything: npt.NDArray[np.intp],
    copies: npt.NDArray[np.intp],
    splits: npt.NDArray[np.int32],
    labels: npt.NDArray[np.int32],
) -> list[Suspect]:
    """Of each pair of equal or nearly equal images the later one, beside the earlier; once for each image.

    Args:
        copies: (N,) of all rows of the file, see `splits.copies_of`.
    """
    found: list[Suspect] = []
    for row in np.flatnonzero(copies != np.arange(len(copies))).tolist():
        found.append(_pair(int(copies[row]), row, 1.0, "copy", splits, labels))
    seen = {one.row for one in found}
    for (first, second), cosine in zip(near.pairs.tolist(), near.cosines.tolist(), strict=True):
        one, other = int(everything[first]), int(everything[second])
        if copies[one] != copies[other] and other not in seen:
            seen.add(other)
            found.append(_pair(one, other, float(cosine), "near-duplicate", splits, labels))
    return found


def _pair(
    first: int, second: int, cosine: float, kind: str, splits: npt.NDArray[np.int32], labels: npt.NDArray[np.int32]
) -> Suspect:
    across = splits[first] != splits[second] and min(splits[first], splits[second]) >= 0
    words = [] if kind == "copy" else [f"cosine {cosine:.3f}"]
    if labels[first] != labels[second] and min(labels[first], labels[second]) >= 0:
        words.append("with another label")
    return Suspect(f"{kind}-across-splits" if across else kind, second, -cosine, "", ", ".join(words), [first])


def outlier_suspects(near: Neighbourhood, everything: npt.NDArray[np.intp]) -> tuple[list[Suspect], float]:
    """Images whose mean distance (1 - cosine) to their nearest is beyond Tukey's fence; and that fence."""
    if not near.nearest.shape[1]:
        return [], np.inf
    distance = 1.0 - near.similarities.mean(axis=1, dtype=np.float64)
    limit = fence(distance, upper=True)
    places = np.flatnonzero(distance > limit)
    count = near.nearest.shape[1]
    return [
        Suspect(
            "outlier", int(everything[place]), -float(distance[place]), "",
            f"mean distance to its {count} nearest {distance[place]:.2f}",
            [int(everything[one]) for one in near.nearest[place, :2]],
        )
        for place in places[np.argsort(-distance[places], kind="stable")].tolist()
    ], limit  # fmt: skip
