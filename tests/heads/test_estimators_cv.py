"""LinearSVMCV and SoftmaxCV against scikit-learn's grid search over the same folds."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import clusters
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, ShuffleSplit, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import featx
from featx import LinearSVMCV, SoftmaxCV

GRID = [1e-3, 1e-2, 1e-1, 1.0, 10.0]


@pytest.fixture(scope="module")
def data():
    values, labels = clusters(per_class=40, spread=4.5, seed=3)
    keep = np.r_[0:40, 40:70, 80:95]  # classes of 40, 30 and 15
    return values[keep].astype(np.float64), np.array(["x", "y", "z"])[labels[keep]]


@pytest.mark.parametrize("scoring", ["accuracy", "balanced_accuracy"])
@pytest.mark.parametrize("weight", [None, {"x": 1.0, "y": 2.0, "z": 4.0}])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LinearSVMCV, LinearSVC(tol=1e-10, max_iter=200_000)),
        (SoftmaxCV, LogisticRegression(tol=1e-10, max_iter=5000)),
    ],
)
def test_the_search_is_scikit_learns(data, ours, theirs, weight, scoring):
    X, y = data
    folds = StratifiedKFold(4, shuffle=True, random_state=1)
    found = ours(GRID[::-1], cv=folds, class_weight=weight, scoring=scoring, device="cpu", tol=1e-14).fit(X, y)
    search = GridSearchCV(
        clone(theirs).set_params(class_weight=weight), {"C": GRID}, cv=folds,
        scoring=make_scorer(balanced_accuracy_score) if scoring.startswith("b") else "accuracy",
    ).fit(X, y)  # fmt: skip
    each = np.array([search.cv_results_[f"split{fold}_test_score"] for fold in range(4)])
    np.testing.assert_allclose(found.scores_, each, atol=1e-12)
    assert found.Cs_.tolist() == GRID
    assert search.best_params_["C"] == found.C_
    best = search.best_estimator_
    np.testing.assert_allclose(found.coef_, best.coef_, atol=2e-4 * np.abs(best.coef_).max())
    assert (found.predict(X) == search.predict(X)).all()
    assert found.n_features_in_ == X.shape[1]


def test_two_classes_groups_and_pipelines(data):
    X, y = data
    X, y = X[:70], y[:70]
    groups = np.arange(70) // 5
    folds = list(GroupKFold(5).split(X, y, groups))
    found = LinearSVMCV(GRID, cv=folds, device="cpu", tol=1e-14).fit(X, y)
    scores = [cross_val_score(LinearSVC(C=c, tol=1e-10, max_iter=200_000), X, y, cv=folds) for c in GRID]
    np.testing.assert_allclose(found.scores_, np.array(scores).T, atol=1e-12)
    assert found.coef_.shape == (1, X.shape[1])
    assert make_pipeline(StandardScaler(), SoftmaxCV(3, cv=3, device="cpu")).fit(X, y).score(X, y) > 0.6
    chances = SoftmaxCV(GRID, cv=3, device="cpu").fit(X, y).predict_proba(X)
    np.testing.assert_allclose(chances.sum(1), 1)


def test_a_number_of_values_lies_around_where_both_terms_weigh_alike(data):
    X, y = data
    tried = LinearSVMCV(5, cv=3, device="cpu").fit(X, y).Cs_
    np.testing.assert_allclose(tried[1:] / tried[:-1], 10)
    scaled = LinearSVMCV(5, cv=3, device="cpu").fit(100 * X, y)
    np.testing.assert_allclose(scaled.Cs_, tried / 1e4)


def test_what_cannot_be_is_refused(data):
    X, y = data
    for options, said in (
        ({"Cs": 0}, "how many values are tried"),
        ({"Cs": [1.0, -1.0]}, "must be above 0 and finite"),
        ({"scoring": "f1"}, "it can be 'accuracy' or 'balanced_accuracy'"),
        ({"cv": ShuffleSplit(3, test_size=0.2, train_size=0.5)}, "must train on all rows"),
    ):
        with pytest.raises(ValueError, match=said):
            LinearSVMCV(**{"device": "cpu", **options}).fit(X, y)
    with pytest.raises(ValueError, match="needs samples of at least 2 classes"):
        featx.SoftmaxCV(device="cpu").fit(X, np.zeros(len(X)))


@pytest.mark.slow
@parametrize_with_checks([LinearSVMCV(3, cv=2, tol=1e-12), SoftmaxCV(3, cv=2, tol=1e-12)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)
