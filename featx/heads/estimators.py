"""The solver as scikit-learn estimators: they drop into pipelines, grid searches and cross-validation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from featx.heads.calibration import Calibration
from featx.heads.normalize import Normalizer
from featx.heads.solver.certificate import Solution
from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.solver import TOLERANCE, Solver
from featx.heads.solver.targets import Targets
from featx.runtime.device import choose_device, strict_precision
from featx.runtime.memory import free_memory

Array = npt.NDArray[Any]


class _LinearEstimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both heads share: fitting, and scores."""

    _kind: str

    def __init__(
        self,
        C: float = 1.0,
        *,
        fit_intercept: bool = True,
        class_weight: Any = None,
        tol: float = TOLERANCE,
        device: str = "auto",
        memory: int | None = None,
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.device = device
        self.memory = memory

    @strict_precision()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to rows X (n, D), NumPy arrays or torch tensors, with classes y (n,)."""
        X, y = validate_data(self, _array(X), _array(y), dtype=[np.float32, np.float64], order="C")
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs samples of at least 2 classes; the data holds one class")
        if not 0 < self.C < np.inf:
            raise ValueError(
                f"C is {self.C}; it must be above 0 and finite: without a penalty separable classes have no optimum. "
                f"A large C, as 1e6, comes as near as it can be certified"
            )
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        of_class = None
        if self.class_weight is not None:
            of_class = compute_class_weight(self.class_weight, classes=self.classes_, y=y, sample_weight=weights)
        device = choose_device(self.device)
        memory = self.memory or free_memory(device) // 2
        blocks = Blocks(X, None, Normalizer("none"), device, memory // 2)
        targets = Targets(self._kind, labels.astype(np.int32), len(self.classes_), weights, of_class)
        intercept, scaling = self._intercept()
        solver = Solver(
            blocks, targets, intercept=intercept, scaling=scaling, tolerance=self.tol, memory_bytes=memory // 2
        )
        solver.at(float(self.C))
        found = solver.solution(solver.coef(), float(self.C))
        if not found.certified.all():
            warnings.warn(
                f"the optimum is proven to {found.gap:.1e} of the objective only, not to {self.tol:g}",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._keep(found, solver.steps)
        return self

    def _keep(self, found: Solution, steps: int) -> None:
        """What was fitted, as attributes; of two classes one row, which speaks for the second, as in scikit-learn."""
        self.coef_, self.intercept_ = found.weights, found.bias
        if len(self.classes_) == 2:
            factor = 1.0 if self._kind == "svm" else 2.0
            self.coef_, self.intercept_ = factor * found.weights[1:], factor * found.bias[1:]
        self.dual_gap_, self.n_iter_ = found.gaps, steps

    def _intercept(self) -> tuple[str, float]:
        return ("free" if self.fit_intercept else "none"), 1.0

    def decision_function(self, X: Any) -> Array:
        """Scores: (n,) for two classes, (n, K) for more."""
        check_is_fitted(self)
        X = validate_data(self, _array(X), reset=False, dtype=[np.float64, np.float32])
        scores: Array = X @ self.coef_.T + self.intercept_
        return scores.ravel() if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> Array:
        """The class with the highest score for each row."""
        scores = self.decision_function(X)
        chosen = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        found: Array = self.classes_[chosen]
        return found


class LinearSVM(_LinearEstimator):
    """One-vs-rest linear SVM with squared hinge loss, the same optimum as scikit-learn's LinearSVC.

    For every class 1/2 |w|^2 + 1/2 v^2 + C sum_n c_n max(0, 1 - y_n (w.x_n + s v))^2 with intercept s v, s the
    intercept_scaling; with penalise_intercept=False the term v^2 is left out.

    Args:
        C: inverse regularisation, > 0.
        fit_intercept, intercept_scaling, class_weight: as LinearSVC.
        penalise_intercept: True as LinearSVC; False as libsvm's SVC.
        tol: the proven gap, relative to the smaller of f and f(0) - f, at which a class is done.
        device: cpu, cuda, cuda:N or auto.
        memory: bytes to work in; features that do not fit are read in blocks. By default half of what is free.

    Attributes:
        coef_, intercept_, classes_, n_features_in_: as LinearSVC.
        dual_gap_: (K,) proven bounds on how far each class's objective is above its optimum; (1,) for two classes.
        n_iter_: Newton steps of the slowest class.

    Example:
        >>> import featx, numpy as np
        >>> featx.LinearSVM(C=10.0).fit(np.array([[0.0], [1.0], [3.0]]), ["low", "low", "high"]).predict([[4.0]])[0]
        np.str_('high')
    """

    _kind = "svm"

    def __init__(
        self,
        C: float = 1.0,
        *,
        fit_intercept: bool = True,
        intercept_scaling: float = 1.0,
        penalise_intercept: bool = True,
        class_weight: Any = None,
        tol: float = TOLERANCE,
        device: str = "auto",
        memory: int | None = None,
    ) -> None:
        super().__init__(
            C, fit_intercept=fit_intercept, class_weight=class_weight, tol=tol, device=device, memory=memory
        )
        self.intercept_scaling = intercept_scaling
        self.penalise_intercept = penalise_intercept

    def _intercept(self) -> tuple[str, float]:
        if not self.fit_intercept:
            return "none", 1.0
        return ("penalised", float(self.intercept_scaling)) if self.penalise_intercept else ("free", 1.0)


class Softmax(_LinearEstimator):
    """Multinomial logistic regression with L2 penalty, the same optimum as scikit-learn's LogisticRegression.

    1/2 |W|^2 + C sum_n c_n (-log softmax(W x_n + b)[y_n]); the intercepts b carry no penalty.

    Args, attributes: as `LinearSVM`; dual_gap_ is one number, (1,).
    """

    _kind = "softmax"

    def predict_proba(self, X: Any) -> Array:
        """(n, K) probabilities."""
        found: Array = np.exp(self.predict_log_proba(X))
        return found

    def predict_log_proba(self, X: Any) -> Array:
        """(n, K) logarithms of the probabilities."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.column_stack([-scores / 2, scores / 2])
        found: Array = log_softmax(scores, axis=1)
        return found


class CalibratedSVM(LinearSVM):
    """A linear SVM whose scores have been calibrated: what `LinearHead.to_sklearn` makes of a calibrated head.

    Fitted anew, as in a cross-validation, it is a LinearSVM without probabilities.

    Attributes:
        calibration_: from scores (n, K) to probabilities.
    """

    calibration_: Calibration | None = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """As `LinearSVM.fit`; the calibration belongs to the old scores and is dropped."""
        self.calibration_ = None
        return super().fit(X, y, sample_weight)

    def decision_function(self, X: Any) -> Array:
        """Scores (n, K), before the calibration; fitted anew, as LinearSVM."""
        if self.calibration_ is None:
            return super().decision_function(X)
        X = validate_data(self, _array(X), reset=False, dtype=[np.float64, np.float32])
        scores: Array = X @ self.coef_.T + self.intercept_
        return scores

    def predict(self, X: Any) -> Array:
        """The class with the highest score, calibrated or not, as `featx predict`."""
        if self.calibration_ is None:
            return super().predict(X)
        found: Array = self.classes_[self.decision_function(X).argmax(axis=1)]
        return found

    def predict_proba(self, X: Any) -> Array:
        """(n, K) probabilities.

        Raises:
            AttributeError: it was fitted anew.
        """
        if self.calibration_ is None:
            raise AttributeError("fitted without a calibration; featx fit-svm --calibrate makes probabilities")
        return self.calibration_(self.decision_function(X))


def _array(values: Any) -> Any:
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16
