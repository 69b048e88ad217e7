"""--class-weight and --score of featx fit-svm and fit-softmax, against scikit-learn on the same rows."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import clusters, write_features
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from sklearn.svm import LinearSVC

import featx
from featx.errors import PlanMismatch, UsageError
from featx.heads.selection.class_weights import class_weights_of
from featx.heads.selection.folds import folds_of
from featx.heads.selection.scoring import score_of

CLASSES = ("ant", "bee", "cow")
TRAINED_ON_ALL = {"test": 0.0, "normalize": "none"}


@pytest.fixture(scope="module")
def rows():
    """Classes of 60, 25 and 4."""
    values, labels = clusters(per_class=60, spread=4.0, seed=3)
    keep = np.r_[0:60, 60:85, 120:124]
    return values[keep], labels[keep]


@pytest.fixture(scope="module")
def features(rows, tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features") / "f.h5", *rows, CLASSES)


@pytest.mark.parametrize("weight", ["balanced", {"ant": 0.5, "bee": 1.0, "cow": 7.0}])
@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_the_weighted_head_is_scikit_learns(tmp_path, rows, features, kind, weight):
    values, labels = rows[0].astype(float), np.array(CLASSES)[rows[1]]
    given = weight
    if weight != "balanced":
        given = str(tmp_path / "weights.csv")
        lines = "".join(f"{name},{value}\n" for name, value in reversed(weight.items()))
        (tmp_path / "weights.csv").write_text("class,weight\n" + lines)
    fit = featx.fit_svm if kind == "svm" else featx.fit_softmax
    fit(features, tmp_path / "h.safetensors", featx.FitConfig(c=0.3, class_weight=given, **TRAINED_ON_ALL))
    found = featx.LinearHead.load(tmp_path / "h.safetensors").scores(values)
    if kind == "svm":
        model = LinearSVC(C=0.3, class_weight=weight, dual=False, tol=1e-10, max_iter=100_000).fit(values, labels)
    else:
        model = LogisticRegression(C=0.3, class_weight=weight, tol=1e-10, max_iter=10_000).fit(values, labels)
    expected = model.decision_function(values)
    if kind == "softmax":  # logits are defined up to a constant per row
        expected, found = (s - s.mean(axis=1, keepdims=True) for s in (expected, found))
    assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()
    unweighted = LinearSVC(C=0.3, dual=False, max_iter=100_000).fit(values, labels).decision_function(values)
    assert np.abs(found - unweighted).max() > 0.1 * np.abs(expected).max()  # it is not nothing


def test_scores_are_scikit_learns():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(50, 4)), generator.choice(3, 50, p=[0.7, 0.2, 0.1])
    assert score_of("accuracy", scores, labels) == pytest.approx((scores.argmax(1) == labels).mean())
    assert score_of("balanced", scores[:, :3], labels) == pytest.approx(
        balanced_accuracy_score(labels, scores[:, :3].argmax(1))
    )
    each = [average_precision_score(labels == k, scores[:, k]) for k in range(3)]
    assert score_of("ap", scores, labels) == pytest.approx(np.mean(each))  # the fourth class has no images


def test_c_is_chosen_by_the_score_asked_for(features):
    chosen = {}
    for score in ("accuracy", "balanced", "ap"):
        report = featx.fit_svm(features, None, featx.FitConfig(score=score, folds=5, **TRAINED_ON_ALL))
        chosen[score] = [point.accuracy for point in report.curve]
        best = max(report.curve, key=lambda point: point.accuracy)
        assert report.c == best.c
        assert report.score == score
    assert len({tuple(np.round(values, 6)) for values in chosen.values()}) == 3
    weighted = featx.fit_svm(features, None, featx.FitConfig(class_weight="balanced", **TRAINED_ON_ALL))
    assert weighted.score == "balanced"
    assert "mean accuracy per class" in str(weighted)
    # Four cows for five folds: nothing is blocked, and the report says so.
    assert any("1 class with fewer images to train on than --folds 5" in note for note in weighted.notes)


@pytest.mark.parametrize("kind", ["svm", "softmax"])
@pytest.mark.parametrize("score", ["balanced", "ap"])
def test_the_curve_is_that_of_a_cross_validation_by_scikit_learn(features, rows, kind, score):
    values, labels = rows[0].astype(float), rows[1]
    fit = featx.fit_svm if kind == "svm" else featx.fit_softmax
    report = fit(features, None, featx.FitConfig(score=score, folds=4, seed=2, **TRAINED_ON_ALL))
    held_out = folds_of(labels.astype(np.int32), 4, 2, list(CLASSES))
    for point in report.curve[:5:2]:
        each = []
        for out in held_out:
            if kind == "svm":
                model = LinearSVC(C=point.c, dual=False, tol=1e-8, max_iter=100_000).fit(values[~out], labels[~out])
                scores = model.decision_function(values[out])
            else:
                model = LogisticRegression(C=point.c, tol=1e-8, max_iter=20_000).fit(values[~out], labels[~out])
                scores = model.predict_proba(values[out])
            if score == "balanced":
                each.append(balanced_accuracy_score(labels[out], model.predict(values[out])))
            else:
                each.append(np.mean([average_precision_score(labels[out] == k, scores[:, k]) for k in range(3)]))
        assert point.accuracy == pytest.approx(np.mean(each), abs=0.012)  # an image or two are on an edge


def test_a_class_with_one_image_calibrates(tmp_path, rows):
    keep = np.r_[0:60, 60:85, 85:86]
    path = write_features(tmp_path / "one.h5", rows[0][keep], rows[1][keep], CLASSES)
    report = featx.fit_svm(path, tmp_path / "h.safetensors", featx.FitConfig(calibrate="platt", **TRAINED_ON_ALL))
    assert report.train == 86
    outputs = featx.LinearHead.load(tmp_path / "h.safetensors").outputs(rows[0])
    np.testing.assert_allclose(outputs.sum(1), 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ant,1\nbee,2\ncow,3\n", "its first line must be class,weight"),
        ("class,weight\nant,1\nbee,2\n", "has no weight for class 'cow'"),
        ("class,weight\nant,1\nbee,2\ncow,3\ndog,4\n", "names what is no class to train on: 'dog'"),
        ("class,weight\nant,0\nbee,2\ncow,3\n", "line 2: 'ant,0'; a class and a weight from 0.0001 to 10000"),
        ("class,weight\nant,1e300\nbee,2\ncow,3\n", "a weight from 0.0001 to 10000"),
        ("class,weight\nant,1\nant,1\nbee,2\ncow,3\n", "line 3: class 'ant' is there twice"),
        ("class,weight\nant,nan\nbee,2\ncow,3\n", "line 2: 'ant,nan'"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, features, text, says):
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(UsageError) as caught:
        featx.fit_svm(features, None, featx.FitConfig(c=1.0, class_weight=str(tmp_path / "w.csv"), test=0.0))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_as_spreadsheets_write_it(tmp_path):
    (tmp_path / "w.csv").write_bytes(b'\xef\xbb\xbfclass,weight\r\n"bee, big",2\r\n ant ,1\r\n')
    assert class_weights_of(str(tmp_path / "w.csv"), np.zeros(1, int), ["ant", "bee, big"]).tolist() == [1.0, 2.0]


def test_a_missing_table_and_another_table_are_refused(tmp_path, features):
    with pytest.raises(UsageError, match="can be balanced or a CSV file"):
        featx.fit_svm(features, None, featx.FitConfig(class_weight="balance"))
    table, head = tmp_path / "w.csv", tmp_path / "h.safetensors"
    config = featx.FitConfig(c=1.0, class_weight=str(table), test=0.0)
    table.write_text("class,weight\nant,1\nbee,2\ncow,3\n")
    first = featx.fit_svm(features, head, config)
    assert featx.fit_svm(features, head, config).c == first.c  # there already
    table.write_text("class,weight\nant,1\nbee,2\ncow,4\n")
    with pytest.raises(PlanMismatch, match="--class-weight sha256"):
        featx.fit_svm(features, head, config)
