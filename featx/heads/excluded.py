"""What a measure leaves out, by reason: a high accuracy over few images must not look like one over all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featx.runtime.text import printable
from featx.status import Status

FAILED, UNLABELLED, OTHER_SPLIT, UNKNOWN, COPIES = (
    "failed", "without a label", "of other splits", "of classes that the head does not know",
    "copies of images that take part",
)  # fmt: skip
_SHOWN_CLASSES = 5


def count_excluded(
    status: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
    measured: npt.NDArray[np.integer],
    *,
    known: npt.NDArray[np.bool_],
    in_split: npt.NDArray[np.bool_] | None = None,
) -> dict[str, int]:
    """Reason -> images, of all images but those that are measured; each counts for the first reason that applies.

    Args:
        status, labels: (N,) of all images, labels as indices into `classes`, -1 for none.
        measured: rows that are not left out.
        known: (N,) whether the head knows the image's class.
        in_split: (N,) whether it is of a split that was asked for; all by default.
    """
    left = np.ones(len(status), bool)
    left[measured] = False
    found: Counter[str] = Counter()
    for reason, holds in (
        (FAILED, status != Status.DONE),
        (OTHER_SPLIT, np.zeros(len(status), bool) if in_split is None else ~in_split),
        (UNLABELLED, labels < 0),
        (UNKNOWN, ~known),
        (COPIES, np.ones(len(status), bool)),
    ):
        rows = np.flatnonzero(left & holds)
        left[rows] = False
        if not len(rows):
            continue
        if reason == UNKNOWN:
            names = Counter(classes[label] for label in labels[rows])
            shown = ", ".join(f"{printable(name)!r} {n:,}" for name, n in names.most_common(_SHOWN_CLASSES))
            more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
            found[f"{reason}: {shown}{more}"] += len(rows)
        else:
            found[reason] += len(rows)
    return dict(found)


def excluded_text(excluded: dict[str, int]) -> str:
    """As part of a sentence: "; not measured: 3 failed, 20 without a label"; empty if nothing is left out."""
    return f"; not measured: {', '.join(f'{n:,} {reason}' for reason, n in excluded.items())}" if excluded else ""
