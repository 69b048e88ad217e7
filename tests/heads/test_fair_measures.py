"""A measure says what it leaves out, and never measures on what was trained on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from conftest import clusters, write_features
from sklearn.metrics import top_k_accuracy_score

from featx.commands.evaluate import evaluate_head
from featx.commands.fit import fit_svm
from featx.commands.probe import probe_layers
from featx.heads.calibration import calibrate
from featx.heads.linear_head import LinearHead
from featx.heads.quality.metrics import measure
from featx.heads.selection.folds import folds_of
from featx.heads.splits import copies_of, split_by_share, split_per_class
from featx.options.heads import FitConfig, ProbeConfig

CLASSES = ("ant", "bee", "cow")


def hashes(names: list[int]) -> np.ndarray:
    """(N, 32): the same number, the same bytes."""
    digests = [hashlib.sha256(str(name).encode()).digest() for name in names]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


@pytest.fixture
def copied(tmp_path):
    """100 images with random labels, five copies of each: nothing can be learnt from them."""
    generator = np.random.default_rng(0)
    image = np.repeat(np.arange(100), 5)
    labels = np.repeat(generator.integers(0, 2, 100), 5).astype(np.int32)
    values = generator.normal(size=(100, 40))[image].astype(np.float32)
    return write_features(tmp_path / "f.h5", values, labels, ("a", "b"), sha256=hashes(image.tolist())), image


def test_copies_of_an_image_are_on_one_side_so_that_random_labels_give_chance(copied):
    path, _ = copied
    for config in (FitConfig(c=1.0, test=0.3), FitConfig(test=0.3), FitConfig(c=1.0, per_class=20)):
        assert fit_svm(path, config=config).metrics.accuracy < 0.75
    found = probe_layers(path, config=ProbeConfig(per_class=20, repeats=3, c=1.0, heads="svm"))
    assert found.rows[0].accuracy < 0.75


@pytest.mark.parametrize("seed", range(5))
def test_no_split_and_no_fold_divides_copies(seed):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 60, 150)
    labels = (image % 3).astype(np.int32)
    copies = copies_of(hashes(image.tolist()))
    assert [image[row] for row in copies] == image.tolist()
    for train, test in (
        split_by_share(labels, 0.3, seed, copies),
        split_per_class(labels, 8, seed, list(CLASSES), copies=copies),
    ):
        assert len(train)
        assert len(test)
        assert not set(image[train]) & set(image[test])
    held_out = folds_of(labels, 4, seed, list(CLASSES), copies)
    assert (held_out.sum(0) == 1).all()
    for fold in held_out:
        assert not set(image[fold]) & set(image[~fold])


def test_without_copies_splits_and_folds_are_what_they_were():
    labels = (np.arange(60) % 3).astype(np.int32)
    alone = copies_of(hashes(list(range(60))))
    for one, other in zip(split_by_share(labels, 0.3, 1, alone), split_by_share(labels, 0.3, 1), strict=True):
        assert (one == other).all()
    assert (folds_of(labels, 3, 1, list(CLASSES), alone) == folds_of(labels, 3, 1, list(CLASSES))).all()
    assert copies_of(np.zeros((4, 32), np.uint8)).tolist() == [0, 1, 2, 3]  # no file: copies of nothing


def test_copies_that_the_users_own_split_divides_are_noted(tmp_path):
    values, labels = clusters(seed=1)
    split = np.arange(len(labels)) % 2
    names = [i // 2 if i < 20 else 1000 + i for i in range(len(labels))]
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES, split_of=split.tolist(), splits=("test", "train"),
                          sha256=hashes(names))  # fmt: skip
    report = fit_svm(path, config=FitConfig(c=1.0, split_column=True))
    assert any("10 test images are copies of training images" in note for note in report.notes)


def test_everything_left_out_is_counted_by_its_reason_and_unknown_classes_are_named(tmp_path):
    values, labels = clusters(seed=0)
    fit_svm(write_features(tmp_path / "f.h5", values, labels, CLASSES), tmp_path / "h.safetensors", FitConfig(c=1.0))
    again = labels.copy()
    again[:20], again[20:27], again[27:30] = 3, 4, -1
    other = write_features(tmp_path / "g.h5", values, again, (*CLASSES, "dog", "elk"), failed=(40, 41))
    report = evaluate_head(tmp_path / "h.safetensors", other)
    assert report.excluded == {
        "failed": 2, "without a label": 3, "of classes that the head does not know: 'dog' 20, 'elk' 7": 27,
    }  # fmt: skip
    assert report.left_out == sum(report.excluded.values()) == 32
    assert "not measured: 2 failed, 3 without a label, 27 of classes that the head does not know" in str(report)
    fitted = fit_svm(other, config=FitConfig(c=1.0, test=0.2))
    assert fitted.excluded == {"failed": 2, "without a label": 3}


def test_names_that_look_the_same_are_the_same_class_in_old_files_too(tmp_path):
    values, labels = clusters(seed=0, classes=2)
    fit_svm(write_features(tmp_path / "f.h5", values, labels, ("caf\u00e9", "the")), tmp_path / "h.safetensors",
            FitConfig(c=1.0))  # fmt: skip
    other = write_features(tmp_path / "g.h5", values, labels, ("cafe\u0301 ", "the"))
    report = evaluate_head(tmp_path / "h.safetensors", other)
    assert report.excluded == {}
    assert report.metrics.accuracy > 0.9


def test_an_empty_test_set_is_noted(tmp_path):
    values, labels = clusters(seed=0, per_class=2)
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES)
    report = fit_svm(path, config=FitConfig(c=1.0, test=0.2))
    assert report.metrics is None
    assert any("nothing was tested" in note for note in report.notes)
    assert not any("nothing was tested" in note for note in fit_svm(path, config=FitConfig(c=1.0, test=0.0)).notes)


def test_images_that_were_trained_on_are_counted_wherever_they_are(tmp_path):
    values, labels = clusters(seed=0)
    own = hashes(list(range(len(labels))))
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES, sha256=own)
    fit_svm(path, tmp_path / "h.safetensors", FitConfig(c=1.0, test=0.25))
    order = np.random.default_rng(0).permutation(len(labels))[:60]
    other = write_features(tmp_path / "g.h5", values[order], labels[order], CLASSES, sha256=own[order])
    report = evaluate_head(tmp_path / "h.safetensors", other)
    train, _ = split_by_share(labels, 0.25, FitConfig().seed)
    assert report.trained_on == len(set(order) & set(train))
    assert f"note: {report.trained_on} of these images are among those it was trained on" in str(report)
    assert evaluate_head(tmp_path / "h.safetensors", write_features(
        tmp_path / "new.h5", values, labels, CLASSES, sha256=hashes(list(range(1000, 1000 + len(labels))))
    )).trained_on == 0  # fmt: skip


def test_a_class_folder_with_a_bar_in_its_name_is_one_class(tmp_path):
    values, labels = clusters(seed=0)
    names = ("sea", "sea|sky", "sky")
    path = write_features(tmp_path / "f.h5", values, labels, names, kind="folder")
    report = fit_svm(path, tmp_path / "h.safetensors", FitConfig(c=1.0))
    head = LinearHead.load(tmp_path / "h.safetensors")
    assert (head.classes, head.multilabel) == (list(names), False)
    assert report.metrics.accuracy > 0.8


def test_a_tie_never_counts_in_the_models_favour():
    scores = np.zeros((4, 7))
    labels = np.array([0, 1, 2, 3])
    found = measure(scores, labels, list("abcdefg"))
    assert (found.accuracy, found.top5) == (0.0, 0.0)
    scores[1, 1] = 1.0
    scores[2, [0, 1, 3, 4]] = 2.0  # four are above, and the label is before the rest
    scores[2, 2] = 1.0
    found = measure(scores, labels, list("abcdefg"))
    assert (found.accuracy, found.top5) == (0.25, 0.5)
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(200, 7)), generator.integers(0, 7, 200)
    found = measure(scores, labels, list("abcdefg"))
    assert found.top5 == top_k_accuracy_score(labels, scores, k=5)
    assert np.array(found.confusion).sum() == 200


def test_a_platt_slope_is_never_negative():
    """Scores that say the opposite of what they should say nothing; they must not turn the order round."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    scores = -np.eye(3)[labels] + 0.1 * generator.normal(size=(300, 3))
    found = calibrate("platt", scores, labels)
    assert min(found.slopes) >= 0
    shares = found(scores)[0]
    torch.testing.assert_close(torch.tensor(shares).sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("calibration", ["none", "platt", "temperature"])
def test_scikit_learn_gets_the_same_decisions_probabilities_and_c(tmp_path, calibration):
    values, labels = clusters(seed=3, spread=3.0)
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES)
    fit_svm(path, tmp_path / "h.safetensors", FitConfig(c=7.0, calibrate=calibration, normalize="l2"))
    head = LinearHead.load(tmp_path / "h.safetensors")
    model = head.to_sklearn()
    scores = head.scores(values)
    assert (model.predict(values) == np.array(head.classes)[scores.argmax(1)]).all()
    assert model[-1].C == 7.0
    if calibration == "none":
        assert not hasattr(model, "predict_proba")
    else:
        np.testing.assert_allclose(model.predict_proba(values.astype(float)), head.outputs(values), rtol=1e-9)
