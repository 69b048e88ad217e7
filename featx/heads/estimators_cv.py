"""Estimators that choose their C themselves, as LogisticRegressionCV: all folds along one path of C."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import check_cv
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from torch import Tensor

from featx.heads.estimators import LinearSVM, Softmax, _array
from featx.heads.normalize import Normalizer
from featx.heads.selection.search import grid_for
from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.solver import TOLERANCE, Solver
from featx.heads.solver.targets import Targets
from featx.runtime.device import choose_device, strict_precision
from featx.runtime.memory import free_memory

SCORINGS = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score}
Array = npt.NDArray[Any]


class _ChoosesC:
    """Fits every fold at every C, and all rows at the best."""

    Cs: Any
    cv: Any
    scoring: str

    @strict_precision()
    def fit(self: Any, X: Any, y: Any) -> Any:
        """Choose C by cross-validation on rows X (n, D) with classes y (n,), and fit all of them with it."""
        X, y = validate_data(self, _array(X), _array(y), dtype=[np.float32, np.float64], order="C")
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs samples of at least 2 classes; the data holds one class")
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring is {self.scoring!r}; it can be {' or '.join(map(repr, SCORINGS))}")
        held_out = _held_out(self.cv, X, y)
        of_class = None
        if self.class_weight is not None:
            of_class = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        device = choose_device(self.device)
        memory = self.memory or free_memory(device) // 2
        blocks = Blocks(X, None, Normalizer("none"), device, memory // 2)
        grid = _grid(self.Cs, blocks)
        intercept, scaling = self._intercept()
        solver = Solver(
            blocks, Targets(self._kind, labels.astype(np.int32), len(self.classes_), None, of_class),
            held_out=held_out, intercept=intercept, scaling=scaling, tolerance=self.tol, memory_bytes=memory // 2,
        )  # fmt: skip
        scores, best = np.zeros((len(held_out), len(grid))), (-1.0, 0.0)
        coef: Tensor | None = None
        for place, c in enumerate(grid):
            solver.at(c)
            for fold, left_out in enumerate(held_out):
                found = solver.scores(1 + fold).cpu().numpy()[:, left_out].argmax(axis=0)
                scores[fold, place] = SCORINGS[self.scoring](labels[left_out], found)
            if scores[:, place].mean() > best[0]:
                best, coef = (float(scores[:, place].mean()), c), solver.coef()
        assert coef is not None
        found = solver.solution(coef, best[1])
        if solver.uncertified or not found.certified.all():
            warnings.warn(
                f"{len(solver.uncertified)} fits of the search are not proven to be at their optimum to {self.tol:g}",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.C_, self.Cs_, self.scores_ = best[1], np.array(grid), scores
        self._keep(found, solver.steps)
        return self


class LinearSVMCV(_ChoosesC, LinearSVM):  # type: ignore[misc]  # its fit takes no sample weights
    """A `LinearSVM` whose C is chosen by cross-validation: the C of GridSearchCV(LinearSVC(), ...), much sooner.

    All classes and folds are fitted together along one path of C.

    Args:
        Cs: values of C to try, or how many powers of ten around where data and regularisation weigh alike.
        cv: number of stratified folds, or a splitter whose folds train on all rows that they do not test on.
        scoring: "accuracy" or "balanced_accuracy"; of equal means the smallest C is taken.
        class_weight: as LinearSVC; "balanced" counts all rows, not those of a fold alone.
        fit_intercept, intercept_scaling, penalise_intercept, tol, device, memory: as `LinearSVM`.

    Attributes:
        C_: the C that was chosen.
        Cs_: (G,) those that were tried, growing.
        scores_: (F, G) of each fold at each.
        coef_, intercept_, classes_, n_features_in_, dual_gap_, n_iter_: as `LinearSVM`, fitted to all rows.
    """

    def __init__(
        self,
        Cs: Any = 7,
        *,
        cv: Any = 5,
        scoring: str = "accuracy",
        fit_intercept: bool = True,
        intercept_scaling: float = 1.0,
        penalise_intercept: bool = True,
        class_weight: Any = None,
        tol: float = TOLERANCE,
        device: str = "auto",
        memory: int | None = None,
    ) -> None:
        super().__init__(
            fit_intercept=fit_intercept, intercept_scaling=intercept_scaling, penalise_intercept=penalise_intercept,
            class_weight=class_weight, tol=tol, device=device, memory=memory,
        )  # fmt: skip
        del self.C
        self.Cs, self.cv, self.scoring = Cs, cv, scoring


class SoftmaxCV(_ChoosesC, Softmax):  # type: ignore[misc]  # as above
    """A `Softmax` whose C is chosen by cross-validation; arguments and attributes as of `LinearSVMCV`."""

    def __init__(
        self,
        Cs: Any = 7,
        *,
        cv: Any = 5,
        scoring: str = "accuracy",
        fit_intercept: bool = True,
        class_weight: Any = None,
        tol: float = TOLERANCE,
        device: str = "auto",
        memory: int | None = None,
    ) -> None:
        super().__init__(
            fit_intercept=fit_intercept, class_weight=class_weight, tol=tol, device=device, memory=memory
        )
        del self.C
        self.Cs, self.cv, self.scoring = Cs, cv, scoring


def _grid(Cs: Any, blocks: Blocks) -> list[float]:
    if isinstance(Cs, int | np.integer):
        if Cs < 1:
            raise ValueError(f"Cs is {Cs}; it is how many values are tried, or the values")
        middle = grid_for(blocks.variance)[3]
        return [middle * 10.0 ** (place - (Cs - 1) // 2) for place in range(Cs)]
    grid = sorted({float(c) for c in np.ravel(Cs)})
    if not grid or not all(0 < c < np.inf for c in grid):
        raise ValueError(f"Cs is {Cs}; its values must be above 0 and finite")
    return grid


def _held_out(cv: Any, X: Array, y: Array) -> npt.NDArray[np.bool_]:
    """(F, n) what each fold tests on.

    Raises:
        ValueError: a fold trains on other rows than all the others.
    """
    found = []
    for train, test in check_cv(cv, y, classifier=True).split(X, y):
        left_out = np.zeros(len(y), bool)
        left_out[test] = True
        if len(train) != int((~left_out).sum()) or left_out[train].any():
            raise ValueError("every fold must train on all rows that it does not test on; cv leaves some out of both")
        found.append(left_out)
    return np.array(found)
