"""Choose C by cross-validation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold

from featx.errors import LabelError
from featx.heads.normalize import Array, Normalizer
from featx.heads.solver import fit_linear
from featx.progress import SILENT, Reporter

GRID_DECADES = range(-3, 4)


@dataclass(frozen=True)
class GridPoint:
    """Cross-validated accuracy at one value of C: mean and standard deviation over the folds."""

    c: float
    accuracy: float
    deviation: float


def grid_for(features: Array) -> list[float]:
    """Seven powers of ten around the C at which data and regularisation weigh alike.

    The centre is 1 / (mean squared distance of the rows from their mean): scaling all features by s moves the
    grid by 1 / s^2, and so leaves the classifiers it holds as they were.

    >>> grid_for(np.array([[0.1, 0.0], [-0.1, 0.0]]))
    [0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0]
    """
    spread = float(features.var(axis=0, dtype=np.float64).sum())
    centre = -round(math.log10(spread)) if spread > 0 else 0
    return [10.0 ** (centre + decade) for decade in GRID_DECADES]


def choose_c(
    kind: str,
    features: Array,
    labels: npt.NDArray[np.int32],
    *,
    normalize: str,
    folds: int,
    seed: int,
    classes: list[str],
    reporter: Reporter = SILENT,
) -> tuple[float, list[GridPoint]]:
    """The C with the best mean accuracy over stratified folds; of equals the smallest.

    Args:
        features: (n, D), not normalised: each fold is normalised by its own training rows.
        labels: (n,) 0..K-1.

    Raises:
        LabelError: a class has fewer rows than folds.
    """
    counts = np.bincount(labels)
    rarest = int(counts.argmin())
    if counts[rarest] < folds:
        raise LabelError(
            f"class {classes[rarest]!r} has {counts[rarest]} images to train on; --c auto with --folds {folds} needs "
            f"{folds}. Give a value with --c, or fewer --folds"
        )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    grid = grid_for(Normalizer.fit(normalize, features)(features))
    accuracy = np.zeros((len(grid), folds))
    reporter.begin("choosing C", len(grid) * folds)
    for fold, (train, test) in enumerate(splitter.split(features, labels)):
        normalizer = Normalizer.fit(normalize, features[train])
        inside, outside = normalizer(features[train]), normalizer(features[test])
        for index, c in enumerate(grid):
            solution = fit_linear(kind, inside, labels[train], c, seed)
            predicted = (outside @ solution.weights.T + solution.bias).argmax(axis=1)
            accuracy[index, fold] = (predicted == labels[test]).mean()
            reporter.advance(1)
    reporter.end()
    means = accuracy.mean(axis=1)
    points = [
        GridPoint(c, float(mean), float(folds_of.std()))
        for c, mean, folds_of in zip(grid, means, accuracy, strict=True)
    ]
    return grid[int(means.argmax())], points
