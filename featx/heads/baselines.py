"""Heads that are not optimised: what a layer is worth without a solver."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featx.heads.normalize import Normalizer

NEIGHBORS = 5
Labels = npt.NDArray[np.int32]


def baseline_scores(
    kind: str, train: npt.NDArray[Any], labels: Labels, test: npt.NDArray[Any], normalize: str, classes: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Scores (m, K) of test rows (m, D) by a head on train rows (n, D) with labels (n,), and its parameter.

    mean: minus the squared distance from the mean of each class. knn: how many of the 5 nearest are of each class, of
    equally many first that of the nearest. ridge: the values of a ridge regression to -1 and 1, its penalty chosen by
    leaving one out. As scikit-learn's NearestCentroid, NearestNeighbors and RidgeClassifierCV. The parameter is 1,
    the number of neighbours, or 1 / penalty.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.neighbors import NearestNeighbors

    normalizer = Normalizer.fit(normalize, train)
    known, asked = (normalizer(np.asarray(rows, np.float64)) for rows in (train, test))
    if kind == "mean":
        means = np.array([known[labels == label].mean(axis=0) for label in range(classes)])
        squares = np.square(asked).sum(1)[:, None] - 2 * asked @ means.T + np.square(means).sum(1)[None]
        return -squares, 1.0
    if kind == "knn":
        count = min(NEIGHBORS, len(known))
        nearest = labels[NearestNeighbors(n_neighbors=count).fit(known).kneighbors(asked, return_distance=False)]
        own = nearest[:, :, None] == np.arange(classes)
        first = np.where(own.any(axis=1), own.argmax(axis=1), count)
        return own.sum(axis=1) - first / (count + 1), float(count)
    spread = float(np.square(known - known.mean(axis=0)).sum(axis=1).mean()) or 1.0
    model = RidgeClassifierCV(spread * np.logspace(-4, 4, 9)).fit(known, labels)
    scores = np.asarray(model.decision_function(asked), np.float64)
    return np.stack([-scores, scores], 1) if scores.ndim == 1 else scores, 1.0 / float(model.alpha_)
