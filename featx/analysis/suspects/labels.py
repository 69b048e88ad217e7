"""Labels that are probably wrong, from probabilities of heads that have not seen the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LabelDoubts:
    """What probabilities say of labels.

    Attributes:
        confidence: (n,) the probability of the given label: the lower, the more suspicious.
        suggested: (n,) the most probable of the classes that reach their thresholds, or of all where none does.
        doubted: (n,) whether confident learning counts it as an error.
        thresholds: (K,) of each class the mean probability of it among the images labelled so.
    """

    confidence: npt.NDArray[np.float64]
    suggested: npt.NDArray[np.intp]
    doubted: npt.NDArray[np.bool_]
    thresholds: npt.NDArray[np.float64]


def doubts(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> LabelDoubts:
    """Confident learning on out-of-sample probabilities (n, K) with labels (n,).

    An image is doubted where, among the classes whose probability reaches the class's threshold, the most probable
    one is not its label. Doubted images are best looked at in the order of their confidence.

    Source:
        Northcutt, Jiang & Chuang, Confident learning: estimating uncertainty in dataset labels, JAIR 70 (2021),
        eq. 2; the order is their self-confidence.
    """
    given = np.asarray(probabilities, np.float64)
    rows, count = np.arange(len(labels)), given.shape[1]
    confidence = given[rows, labels]
    sizes = np.bincount(labels, minlength=count)
    thresholds = np.bincount(labels, weights=confidence, minlength=count) / np.maximum(sizes, 1)
    reached = (given >= thresholds) & (sizes > 0)
    best = np.where(reached, given, -1.0).argmax(axis=1)
    doubted = reached.any(axis=1) & (best != labels)
    suggested = np.where(reached.any(axis=1), best, given.argmax(axis=1))
    return LabelDoubts(confidence, suggested, doubted, thresholds)
