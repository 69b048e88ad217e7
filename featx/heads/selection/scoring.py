"""By which number C, or the best epoch, is chosen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featx.heads.labels import Labels
from featx.heads.quality.metrics import measure_labels

SCORES = {
    "accuracy": "accuracy",
    "balanced": "mean accuracy per class",
    "ap": "mean average precision",
}


def score_of(name: str, scores: npt.NDArray[np.floating], labels: Labels) -> float:
    """How good scores (n, K) are for labels (n,) or membership (n, K), n > 0; from 0 to 1.

    Args:
        name: of `SCORES`. Classes without images do not count in the means over classes. The average precision is of
            each class against the rest, over all images.
    """
    if labels.ndim == 2 or name == "ap":
        names = [str(k) for k in range(scores.shape[1])]
        member = labels.astype(bool) if labels.ndim == 2 else labels[:, None] == np.arange(scores.shape[1])
        return measure_labels(scores, member, names).mean_average_precision
    right = scores.argmax(axis=1) == labels
    if name == "accuracy":
        return float(right.mean())
    counts = np.bincount(labels)
    return float((np.bincount(labels, weights=right) / np.maximum(counts, 1))[counts > 0].mean())


def chosen_score(asked: str | None, weighted: bool, several: bool = False) -> str:
    """The score where none is asked for: with weights of classes, the mean over classes."""
    if several:
        return "ap"
    return asked or ("balanced" if weighted else "accuracy")
