"""Fit the weights of a head for one value of C. The objectives are scikit-learn's, and so is this solver."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from featx.heads.normalize import Array

KINDS = ("svm", "softmax")
MAX_ITERATIONS = {"svm": 10_000, "softmax": 2_000}
TOLERANCE = {"svm": 1e-4, "softmax": 1e-5}
WIDE = 4  # from this many values per row and row on, the rows' own span is the smaller space to work in


@dataclass(frozen=True)
class Solution:
    """Weights of one row per class, whatever the number of classes.

    Attributes:
        weights, bias: (K, D) and (K,), K >= 2.
        converged: the solver reached its tolerance.
    """

    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    converged: bool


def fit_linear(kind: str, features: Array, labels: npt.NDArray[np.int32], c: float, seed: int) -> Solution:
    """The optimum of a linear SVM or softmax on normalised features.

    svm: for every class against the rest, 1/2 |w|^2 + 1/2 b^2 + C sum_n max(0, 1 - y_n (w.x_n + b))^2,
    scikit-learn's LinearSVC (squared hinge, intercept penalised).
    softmax: 1/2 |W|^2 + C sum_n -log softmax(W x_n + b)[y_n], scikit-learn's LogisticRegression (intercept
    free). With two classes both fit one weight vector w, returned as the rows -w/2 and w/2 (softmax) or
    -w and w (svm), so that the scores' order, and the softmax's probabilities, are those of scikit-learn.

    Args:
        features: (n, D).
        labels: (n,) 0..K-1, each present.
    """
    limits = {"max_iter": MAX_ITERATIONS[kind], "tol": TOLERANCE[kind]}
    model = LinearSVC(C=c, random_state=seed, **limits) if kind == "svm" else LogisticRegression(C=c, **limits)
    basis = None
    if features.shape[1] >= WIDE * len(features):
        features, basis = in_own_span(features)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(features, labels)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    weights, bias = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    weights = weights if basis is None else weights @ basis.T
    if len(weights) == 1:
        half = 1.0 if kind == "svm" else 0.5
        weights, bias = (
            np.vstack([-half * weights, half * weights]),
            np.concatenate([-half * bias, half * bias]),
        )
    return Solution(weights, bias, converged)


def in_own_span(features: Array) -> tuple[Array, npt.NDArray[np.float64]]:
    """Rows (n, D) with D > n as coordinates (n, n) in an orthonormal basis (D, n) of their span.

    An optimum of these objectives lies in the span of the rows (the representer theorem; Schoelkopf, Herbrich &
    Smola, COLT 2001), and neither scores nor norms change there: features = coordinates @ basis.T.
    """
    basis, triangle = np.linalg.qr(features.T.astype(np.float64))
    return np.ascontiguousarray(triangle.T), basis
