"""Calibrations against scikit-learn's, and against what they are for."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import clusters, write_features
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from sklearn.calibration import _SigmoidCalibration
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from featx.commands.fit import fit_softmax, fit_svm
from featx.errors import FileFormatError, UsageError
from featx.heads.calibration import Calibration, calibrate
from featx.heads.linear_head import LinearHead
from featx.options.heads import FitConfig


def held_out_scores() -> tuple[np.ndarray, np.ndarray]:
    values, labels = clusters(per_class=60, spread=2.5, seed=3)
    return cross_val_predict(LinearSVC(C=0.1), values, labels, method="decision_function"), labels


def test_platt_is_scikit_learns_sigmoid():
    scores, labels = held_out_scores()
    found = calibrate("platt", scores, labels)
    for k in range(3):
        expected = _SigmoidCalibration().fit(scores[:, k], (labels == k).astype(float))
        assert (found.slopes[k], found.offsets[k]) == pytest.approx((-expected.a_, -expected.b_), rel=1e-3, abs=1e-4)


def test_the_temperature_is_the_likeliest():
    scores, labels = held_out_scores()

    def loss(slope: float) -> float:
        return -log_softmax(slope * scores, axis=1)[np.arange(len(labels)), labels].mean()

    best = minimize_scalar(loss, bounds=(0, 100), method="bounded", options={"xatol": 1e-8})
    assert calibrate("temperature", scores, labels).slopes == pytest.approx([best.x] * 3, rel=1e-4)


@pytest.mark.parametrize("kind", ["temperature", "platt"])
@pytest.mark.parametrize("normalization", ["l2", "standard"])
@pytest.mark.parametrize("c", [None, 0.5])
def test_a_fitted_head_gives_probabilities_learnt_on_held_out_folds(tmp_path, kind, normalization, c):
    everything, classes = clusters(per_class=240, spread=2.5, seed=4)
    known = np.arange(len(classes)) % 6 == 0
    values, labels = everything[known], classes[known]
    path = write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"))
    config = FitConfig(c=c, calibrate=kind, normalize=normalization, test=0.0, folds=4, seed=5)
    report = fit_svm(path, tmp_path / "h.safetensors", config)
    head = LinearHead.load(tmp_path / "h.safetensors")
    chances = head.outputs(values)
    np.testing.assert_allclose(chances.sum(1), 1)
    fresh = head.outputs(everything[~known])
    if kind == "temperature":
        # 600 new images: where it says 70 %, about 70 % are right; the standard error of the share is 2 %.
        assert abs(fresh.max(1).mean() - (fresh.argmax(1) == classes[~known]).mean()) < 0.06
    else:
        one_against_rest = expit(head.scores(everything[~known]) * head.calibration.slopes + head.calibration.offsets)
        np.testing.assert_allclose(fresh, one_against_rest / one_against_rest.sum(1, keepdims=True))
    if normalization == "l2":
        folds = StratifiedKFold(4, shuffle=True, random_state=5)
        model = LinearSVC(C=report.c, tol=1e-6, max_iter=10**5)
        rows = normalize(values.astype(float))
        scores = cross_val_predict(model, rows, labels, cv=folds, method="decision_function")
        assert head.calibration.slopes == pytest.approx(calibrate(kind, scores, labels).slopes, rel=0.03)
    if kind == "temperature":
        assert (chances.argmax(1) == head.scores(values).argmax(1)).all()


def test_a_softmax_needs_none_and_a_damaged_one_is_refused(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(), ("a", "b", "c"))
    with pytest.raises(UsageError, match="a softmax gives probabilities as it is"):
        fit_softmax(path, None, FitConfig(calibrate="platt"))
    fit_svm(path, tmp_path / "h.safetensors", FitConfig(c=1.0))
    plain = LinearHead.load(tmp_path / "h.safetensors")
    for broken in (Calibration("platt", [1.0], [0.0]), Calibration("magic", [1.0] * 3, [0.0] * 3)):
        object.__setattr__(plain, "calibration", broken)
        plain.save(tmp_path / "b.safetensors")
        with pytest.raises(FileFormatError, match="calibration"):
            LinearHead.load(tmp_path / "b.safetensors")
