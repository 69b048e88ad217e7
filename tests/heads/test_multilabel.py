"""Images of several classes (`a|b`): every class against the rest, measured by average precision."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import clusters, write_features
from sklearn.metrics import average_precision_score
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from featx.commands.evaluate import evaluate_head
from featx.commands.fit import fit_softmax, fit_svm
from featx.commands.predict import predict_images
from featx.commands.probe import probe_layers
from featx.errors import LabelError, UsageError
from featx.heads.linear_head import LinearHead
from featx.heads.splits import split_by_share
from featx.options.heads import FitConfig

NAMES = ("dog", "dog|sea", "sea", "sky", "sky|dog")
CLASSES = ["dog", "sea", "sky"]


@pytest.fixture
def scenes(tmp_path):
    """A features file of 200 rows with labels of NAMES, and the rows and their membership (N, 3)."""
    values, labels = clusters(classes=5, seed=31, width=20)
    membership = np.array([[part in name.split("|") for part in CLASSES] for name in NAMES])[labels]
    return write_features(tmp_path / "f.h5", values, labels, NAMES, kind="csv"), values, membership


def margins(rows, membership, c):
    """Decision values of scikit-learn's SVMs, one per class: a function of rows (n, D)."""
    models = [LinearSVC(C=c, tol=1e-8, dual=False, max_iter=10_000).fit(rows, own) for own in membership.T]
    return lambda others: np.column_stack([model.decision_function(others) for model in models])


def test_every_class_is_fitted_against_the_rest_and_measured_as_scikit_learn_does(tmp_path, scenes, featx):
    path, values, membership = scenes
    train, test = split_by_share(np.zeros(len(values), np.int32), 0.2, seed=0)
    ran = featx("fit-svm", path, "-o", tmp_path / "head.safetensors", "--c", "0.5", "--json")
    rows = normalize(values.astype(np.float64))
    expected = margins(rows[train], membership[train], 0.5)(rows[test])
    head = LinearHead.load(tmp_path / "head.safetensors")
    assert head.classes == CLASSES
    # |w - w*|^2 <= 2 gap, and the gap is proven to 1e-4 of an objective of about 30: scores may differ by 0.08.
    np.testing.assert_allclose(head.scores(values[test]), expected, atol=1e-2)
    precision = [average_precision_score(m, e) for m, e in zip(membership[test].T, expected.T, strict=True)]
    assert ran.json["metrics"]["per_class"] == pytest.approx(dict(zip(CLASSES, precision, strict=True)), abs=1e-3)
    assert ran.json["metrics"]["mean_average_precision"] == pytest.approx(np.mean(precision), abs=1e-3)
    shown = featx("fit-svm", path, "--c", "0.5").out
    assert f"mean average precision {np.mean(precision):.1%}" in shown
    assert "accuracy" not in shown


def test_c_is_chosen_by_mean_average_precision(scenes):
    path, values, membership = scenes
    report = fit_svm(path, config=FitConfig(test=0.0, folds=4, seed=2))
    rows = normalize(values.astype(np.float64))
    for point in report.curve[::3]:
        found = []
        for inside, outside in KFold(4, shuffle=True, random_state=2).split(rows):
            scores = margins(rows[inside], membership[inside], point.c)(rows[outside])
            found.append(average_precision_score(membership[outside], scores))
        assert point.accuracy == pytest.approx(np.mean(found), abs=2e-3)
    assert report.c == max(report.curve, key=lambda point: point.accuracy).c


def test_predictions_name_all_classes_above_zero_and_evaluation_takes_other_files(tmp_path, scenes):
    path, values, _ = scenes
    fit_svm(path, tmp_path / "head.safetensors")
    head = LinearHead.load(tmp_path / "head.safetensors")
    predict_images(tmp_path / "head.safetensors", path, tmp_path / "p.csv")
    lines = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    scores = head.scores(values)
    assert [line["class"] for line in lines] == [
        "|".join(name for name, score in zip(CLASSES, row, strict=True) if score > 0) for row in scores
    ]
    assert {line["class"] for line in lines} >= {"dog", "dog|sea"}
    # Another file, another order of the labels, one of them unknown to the head.
    names = ("sea|dog", "cat", "sky|cat", "sea")
    own = np.array([[True, True, False], [False] * 3, [False, False, True], [False, True, False]])
    labels = np.arange(40) % 4
    other = write_features(tmp_path / "other.h5", values[:40], labels, names, kind="csv")
    report = evaluate_head(tmp_path / "head.safetensors", other)
    known = labels != 1
    assert (report.images, report.left_out) == (30, 10)
    expected = [average_precision_score(own[labels][known][:, k], scores[:40][known, k]) for k in range(3)]
    assert list(report.metrics.per_class.values()) == pytest.approx(expected)


def test_what_needs_one_class_per_image_is_refused(tmp_path, scenes):
    path = scenes[0]
    with pytest.raises(LabelError, match=r"several classes \(a\|b\); a softmax gives each image one.*featx fit-svm"):
        fit_softmax(path)
    for config in (FitConfig(calibrate="platt"), FitConfig(per_class=3)):
        with pytest.raises(UsageError, match="several classes"):
            fit_svm(path, config=config)
    with pytest.raises(LabelError, match="several classes"):
        probe_layers(path)
    fit_svm(path, tmp_path / "head.safetensors")
    with pytest.raises(UsageError, match="several classes"):
        LinearHead.load(tmp_path / "head.safetensors").to_sklearn()
    one = write_features(tmp_path / "one.h5", scenes[1][:20], [0] * 20, ("a| a",), kind="csv")
    with pytest.raises(LabelError, match="at least two classes to tell apart; to train on: 'a'"):
        fit_svm(one)
