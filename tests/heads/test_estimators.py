"""The estimators keep scikit-learn's contract and find its optima."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import clusters
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from featx import LinearHead, LinearSVM, Softmax
from featx.heads.solver.solver import solve


@parametrize_with_checks([LinearSVM(tol=1e-18), Softmax(tol=1e-18)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_and_classes_are_those_of_scikit_learn(classes):
    values, labels = clusters(classes=classes, seed=1)
    names = np.array(["ant", "bee", "cow", "dog"])[labels]
    ours = LinearSVM(C=0.3, tol=1e-12).fit(values, names)
    theirs = LinearSVC(C=0.3, dual=False, tol=1e-10, max_iter=10**5).fit(values.astype(float), names)
    np.testing.assert_allclose(ours.decision_function(values), theirs.decision_function(values), atol=1e-4)
    assert ours.coef_.shape == theirs.coef_.shape
    assert (ours.classes_ == theirs.classes_).all()
    ours = Softmax(C=0.3, tol=1e-12).fit(values, names)
    theirs = LogisticRegression(C=0.3, tol=1e-10, max_iter=10**4).fit(values.astype(float), names)
    np.testing.assert_allclose(ours.predict_proba(values), theirs.predict_proba(values), atol=1e-5)
    np.testing.assert_allclose(np.exp(ours.predict_log_proba(values)), ours.predict_proba(values))


@pytest.mark.parametrize("weight", ["balanced", {0: 3.0, 1: 0.5, 2: 1.0}])
def test_class_weights_and_intercepts_mean_what_they_mean_in_scikit_learn(weight):
    values, labels = clusters(seed=2)
    values, labels = values[30:], labels[30:]  # unbalanced
    options = {"C": 0.2, "class_weight": weight, "intercept_scaling": 3.0}
    ours = LinearSVM(tol=1e-12, **options).fit(values, labels)
    theirs = LinearSVC(dual=False, tol=1e-10, max_iter=10**5, **options).fit(values.astype(float), labels)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-4)
    ours = LinearSVM(tol=1e-12, C=0.2, fit_intercept=False).fit(values, labels)
    theirs = LinearSVC(C=0.2, fit_intercept=False, dual=False, tol=1e-10, max_iter=10**5).fit(values, labels)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)


def test_an_intercept_without_penalty_is_the_limit_of_a_large_scaling():
    values, labels = clusters(classes=2, seed=3)
    free = LinearSVM(C=0.1, penalise_intercept=False, tol=1e-12).fit(values, labels)
    scaled = LinearSVM(C=0.1, intercept_scaling=1e3, tol=1e-12).fit(values, labels)
    np.testing.assert_allclose(free.coef_, scaled.coef_, atol=1e-4)
    np.testing.assert_allclose(free.intercept_, scaled.intercept_, atol=1e-4)
    assert np.abs(free.intercept_ - LinearSVM(C=0.1).fit(values, labels).intercept_).max() > 1e-2
    # Another loss, the same free intercept: the classes agree almost everywhere.
    assert (free.predict(values) == SVC(kernel="linear", C=0.1).fit(values, labels).predict(values)).mean() > 0.9


def test_they_drop_into_pipelines_and_grid_searches_and_take_tensors():
    values, labels = clusters(seed=4)
    search = GridSearchCV(make_pipeline(StandardScaler(), LinearSVM()), {"linearsvm__C": [1e-3, 1e-1]}, cv=3)
    assert search.fit(values, labels).best_score_ > 0.6
    half = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(
        LinearSVM().fit(half, labels).decision_function(half),
        LinearSVM().fit(half.float().numpy(), labels).decision_function(half.float().numpy()),
    )
    by_tensor = Softmax().fit(torch.from_numpy(values), torch.from_numpy(labels))
    np.testing.assert_array_equal(
        by_tensor.predict(torch.from_numpy(values)), Softmax().fit(values, labels).predict(values)
    )


def test_what_could_not_be_proven_is_warned_of():
    values, labels = clusters(seed=5)
    with pytest.warns(ConvergenceWarning, match="proven to"):
        LinearSVM(C=1e6, tol=1e-40).fit(values + 100, labels)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["svm", "softmax"])
@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_a_head_becomes_the_same_classifier_in_scikit_learn(kind, classes, normalize):
    values, labels = clusters(classes=classes, seed=6)
    found = solve(kind, values, labels, 0.5)
    names = ["ant", "bee", "cow"][:classes]
    head = LinearHead(kind, found.weights, found.bias, names, normalize, "fc7", {})
    plain = head.to_sklearn()
    scores = head.scores(values)
    assert (plain.predict(values) == np.array(names)[scores.argmax(1)]).all()
    if kind == "softmax":
        np.testing.assert_allclose(plain.predict_proba(values), head.outputs(values), atol=1e-6)
    else:
        expected = scores if classes > 2 else scores[:, 1]
        np.testing.assert_allclose(plain.decision_function(values), expected, atol=1e-5)
