"""How well a linear SVM tells the classes apart by cross-validation, and which images it gets wrong."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDS = 5


@dataclass(frozen=True)
class CrossValidated:
    """What was predicted of each image by the SVM that had not seen it.

    Attributes:
        rows: (n,) that were measured.
        labels, predicted: (n,) indices of classes.
        margins: (n,) score of the best other class less that of the true one: above 0 it is wrong, and how much.
    """

    rows: npt.NDArray[np.intp]
    labels: npt.NDArray[np.int32]
    predicted: npt.NDArray[np.int32]
    margins: npt.NDArray[np.float64]


def cross_validate(
    values: npt.NDArray[Any],
    rows: npt.NDArray[np.intp],
    labels: npt.NDArray[np.int32],
    copies: npt.NDArray[np.intp],
    seed: int,
) -> CrossValidated:
    """Five folds, files of the same bytes in the same fold; columns are standardised by what is learned from.

    Args:
        values: (n, D) of the rows.
        labels: (n,) of the rows; every class has five images or more.
        copies: (n,) equal numbers for equal images.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    from featx.heads.estimators import LinearSVM

    predicted = np.zeros(len(rows), np.int32)
    margins = np.zeros(len(rows))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # groups that do not fit the classes exactly
        parts = list(folds.split(values, labels, copies))
    for train, test in parts:
        known = values[train].astype(np.float64)
        mean, deviation = known.mean(axis=0), known.std(axis=0)
        scale = np.where(deviation == 0, 1.0, deviation)
        machine = LinearSVM(C=0.01).fit(((known - mean) / scale).astype(np.float32), labels[train])
        scores = machine.decision_function(((values[test] - mean) / scale).astype(np.float32))
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], 1)
        place = np.searchsorted(machine.classes_, labels[test])
        each = np.arange(len(test))
        predicted[test] = machine.classes_[scores.argmax(axis=1)]
        own = scores[each, place].copy()
        scores[each, place] = -np.inf
        margins[test] = scores.max(axis=1) - own
    return CrossValidated(rows, labels, predicted, margins)
