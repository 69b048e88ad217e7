"""`fit-svm`, `fit-softmax`, `evaluate` and `predict` against scikit-learn fitted directly on the same rows."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import clusters, write_features, write_photo
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.preprocessing import normalize as l2
from sklearn.svm import LinearSVC

from featx.commands.evaluate import evaluate_head
from featx.commands.extract import extract_features
from featx.commands.fit import fit_softmax, fit_svm
from featx.commands.predict import predict_images
from featx.errors import (
    FeaturesMismatch,
    FileFormatError,
    LabelError,
    PlanMismatch,
    TooManyBadImages,
    UnknownLayer,
    UsageError,
    WeightsMismatch,
)
from featx.heads.linear_head import LinearHead
from featx.heads.splits import split_by_share
from featx.options.extraction import EvaluateConfig, ExtractConfig, PredictConfig
from featx.options.heads import FitConfig

CLASSES = ("ant", "bee", "cow")


@pytest.mark.parametrize("normalize", ["none", "l2", "standard"])
@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_the_head_predicts_as_scikit_learn_fitted_on_the_same_rows(tmp_path, kind, normalize):
    values, labels = clusters(spread=2.5)
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES)
    fit = fit_svm if kind == "svm" else fit_softmax
    report = fit(path, tmp_path / "h.safetensors", FitConfig(c=0.3, normalize=normalize, seed=4))
    train, test = split_by_share(labels.astype(np.int32), 0.2, 4)
    scale = StandardScaler().fit(values[train]).transform if normalize == "standard" else l2
    prepared = values.astype(np.float64) if normalize == "none" else scale(values.astype(np.float64))
    if kind == "svm":
        model = LinearSVC(C=0.3, tol=1e-8, max_iter=100_000, random_state=0)
    else:
        model = LogisticRegression(C=0.3, tol=1e-8, max_iter=10_000)
    model.fit(prepared[train], labels[train])
    head = LinearHead.load(tmp_path / "h.safetensors")
    expected = model.decision_function(prepared)
    found = head.scores(values)
    if kind == "softmax":  # logits are defined up to a constant per row
        expected, found = (s - s.mean(axis=1, keepdims=True) for s in (expected, found))
    assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()
    assert report.metrics.accuracy == pytest.approx((model.predict(prepared[test]) == labels[test]).mean())
    assert (report.train, report.test, report.c) == (len(train), len(test), 0.3)


def test_failed_and_unlabelled_images_neither_train_nor_test(tmp_path):
    values, labels = clusters()
    labels = labels.copy()
    labels[7] = -1
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES, failed=(3, 50))
    report = fit_svm(path, None, FitConfig(c=1.0))
    assert (report.left_out, report.train + report.test) == (3, 117)
    assert sum(map(sum, report.metrics.confusion)) == report.test


def test_each_split_trains_and_tests_on_its_own_rows(tmp_path):
    values, labels = clusters()
    split_of = [i % 2 for i in range(120)]
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES, split_of=split_of, splits=("test", "train"))
    by_column = fit_svm(path, None, FitConfig(c=1.0, split_column=True))
    per_class = fit_svm(path, None, FitConfig(c=1.0, per_class=30))
    everything = fit_svm(path, None, FitConfig(c=1.0, test=0.0))
    assert [(r.train, r.test) for r in (by_column, per_class, everything)] == [(60, 60), (90, 30), (120, 0)]
    assert everything.metrics is None
    with pytest.raises(UsageError, match="--test and --per-class are different splits; choose one"):
        FitConfig(test=0.2, per_class=30)


def test_c_auto_reports_its_curve_and_the_same_seed_gives_the_same_head(tmp_path):
    values, labels = clusters(spread=3)
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES)
    reports = [fit_svm(path, tmp_path / f"{i}.safetensors", FitConfig(seed=9)) for i in range(2)]
    assert len(reports[0].curve) == 7
    best = max(point.accuracy for point in reports[0].curve)
    assert next(p.accuracy for p in reports[0].curve if p.c == reports[0].c) == best
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    assert LinearHead.load(tmp_path / "0.safetensors").report["c"] == reports[0].c


def test_the_same_fit_again_does_nothing_and_another_is_refused(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(), CLASSES)
    for fit in (fit_svm, fit_softmax):
        head = tmp_path / f"{fit.__name__}.safetensors"
        first = fit(path, head, FitConfig(per_class=20))
        before = head.stat().st_mtime_ns
        again = fit(path, head, FitConfig(per_class=20))
        assert head.stat().st_mtime_ns == before
        assert dataclasses.replace(again, seconds=first.seconds) == first
    fit_softmax(path, head, FitConfig(per_class=20, memory="1G", layer="fc7", device="cpu"))  # the same head
    with pytest.raises(PlanMismatch, match=r"is a head made with different settings: --seed 0, now 1"):
        fit_softmax(path, head, FitConfig(per_class=20, seed=1))
    with pytest.raises(PlanMismatch, match="kind softmax, now svm"):
        fit_svm(path, head, FitConfig(per_class=20))
    other = write_features(tmp_path / "g.h5", *clusters(), CLASSES, failed=(3,))
    with pytest.raises(PlanMismatch, match=r"features [0-9a-f]{12}\.\.\., now"):
        fit_softmax(other, head, FitConfig(per_class=20))
    assert head.stat().st_mtime_ns == before


def test_a_head_that_is_there_is_recognised_without_torch(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(), CLASSES)
    fit_svm(path, tmp_path / "h.safetensors", FitConfig(c=1.0))
    program = (
        "import sys; from featx.cli import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    )
    words = ["fit-svm", str(path), "--c", "1", "-o", str(tmp_path / "h.safetensors")]
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert "saved as" in ran.stdout


def test_classes_without_a_training_image_are_not_learned_and_two_are_enough(tmp_path):
    values, labels = clusters(classes=3)
    path = write_features(tmp_path / "f.h5", values[:80], labels[:80], CLASSES)
    report = fit_softmax(path, tmp_path / "h.safetensors", FitConfig(c=1.0))
    head = LinearHead.load(tmp_path / "h.safetensors")
    assert (head.classes, head.weights.shape) == (["ant", "bee"], (2, 12))
    np.testing.assert_allclose(head.outputs(values[:5]).sum(axis=1), 1)
    assert report.metrics.top5 is None


@pytest.mark.parametrize(
    ("labels", "config", "message"),
    [
        ([-1] * 9, {}, "no labelled images: put them into one folder per class"),
        ([0] * 9, {}, "a head needs at least two classes.*to train on: 'ant'"),
        ([0] * 5 + [1] * 4, {"c": None}, "largest class, 'ant', has 4 images to train on; --folds 5"),
        ([0] * 5 + [1] * 4, {"per_class": 5}, "class 'bee' has 4 usable images"),
        ([0] * 5 + [1] * 4, {"split_column": True}, "needs splits called train and test"),
    ],
)
def test_labels_that_do_not_allow_it_get_one_clear_line(tmp_path, labels, config, message):
    path = write_features(tmp_path / "f.h5", np.random.default_rng(0).random((9, 4)), labels, CLASSES)
    with pytest.raises(LabelError, match=message) as caught:
        fit_svm(path, None, FitConfig(**{"c": 1.0, **config}))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_nan_in_a_row_that_counts_as_done_is_named(tmp_path):
    values, labels = clusters()
    values[33, 2] = np.nan
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES)
    with pytest.raises(FileFormatError, match=r"fc7 of 000033\.jpg \(row 33\) holds NaN"):
        fit_svm(path, None, FitConfig(c=1.0, test=0.0))


def test_an_unknown_layer_and_a_file_in_the_way_are_refused(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(), CLASSES)
    with pytest.raises(UnknownLayer, match="no layer 'fc6'; it holds fc7"):
        fit_svm(path, None, FitConfig(layer="fc6"))
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileFormatError, match=r"thesis\.tex cannot be read as a head"):
        fit_svm(path, tmp_path / "thesis.tex", FitConfig(c=1.0))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_files_of_another_kind_are_named_for_what_they_are(tmp_path):
    (tmp_path / "f.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(FileFormatError, match=r"f\.h5 is a features file and no head; the head comes first"):
        LinearHead.load(tmp_path / "f.h5")
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileFormatError, match=r"photos is a folder; featx extract .*photos -o NAME\.h5 makes a file"):
        fit_svm(tmp_path / "photos")
    (tmp_path / "list.txt").write_text("a.jpg")
    with pytest.raises(
        FileFormatError, match=r"list\.txt cannot be read as a features file: it is not an HDF5 file\. featx"
    ):
        fit_svm(tmp_path / "list.txt")


def test_evaluate_measures_on_the_rows_and_classes_the_head_knows(tmp_path):
    values, labels = clusters(seed=0)
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES)
    fit_svm(path, tmp_path / "h.safetensors", FitConfig(c=1.0, test=0.0))
    # Another file: the classes in another order, one the head does not know, one failed row.
    again = np.array([2, 1, 0], np.int32)[labels]
    again[:10] = 3
    other = write_features(tmp_path / "g.h5", values, again, ("cow", "bee", "ant", "dog"), failed=(119,))
    report = evaluate_head(tmp_path / "h.safetensors", other)
    predicted = LinearHead.load(tmp_path / "h.safetensors").scores(values).argmax(1)
    assert (report.images, report.left_out) == (109, 11)
    assert report.metrics.accuracy == pytest.approx((predicted == labels)[10:119].mean())
    with pytest.raises(LabelError, match="no split 'test'"):
        evaluate_head(tmp_path / "h.safetensors", other, EvaluateConfig(split="test"))


@pytest.fixture
def photo_head(tmp_path):
    """A head on real features of photos: dark ones against bright ones."""
    for index in range(12):
        write_photo(tmp_path / "photos" / ("dark" if index % 2 else "bright") / f"{index}.jpg", index)
    chosen = ExtractConfig(
        backbone="squeezenet1_1", layers="features.5", weights="random:0", device="cpu", pool="avg", batch_size=4
    )
    extract_features(tmp_path / "photos", tmp_path / "f.h5", chosen)
    fit_softmax(tmp_path / "f.h5", tmp_path / "h.safetensors", FitConfig(c=1.0, test=0.0))
    return tmp_path


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_predicting_from_images_is_predicting_from_their_features(photo_head):
    folder = photo_head
    options = PredictConfig(device="cpu", batch_size=4)
    predict_images(folder / "h.safetensors", folder / "photos", folder / "a.csv", options)
    predict_images(folder / "h.safetensors", folder / "f.h5", folder / "b.csv", options)
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()
    rows = rows_of(folder / "a.csv")
    assert [row["path"] for row in rows] == sorted(f"{'dark' if i % 2 else 'bright'}/{i}.jpg" for i in range(12))
    assert set(rows[0]) == {"path", "class", "score:bright", "score:dark", "error"}
    for row in rows:
        assert float(row["score:bright"]) + float(row["score:dark"]) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(("bright", "dark"), key=lambda c: float(row[f"score:{c}"]))


def test_every_image_keeps_its_line_and_a_bad_one_says_why(photo_head):
    folder = photo_head
    odd = os.fsdecode(b"photos/dark/bad \xff\n.jpg")
    (folder / odd).write_bytes(b"no image")
    with pytest.raises(TooManyBadImages):
        predict_images(folder / "h.safetensors", folder / "photos", folder / "p.csv", PredictConfig(device="cpu"))
    assert not (folder / "p.csv").exists()
    report = predict_images(
        folder / "h.safetensors", folder / "photos", folder / "p.csv", PredictConfig(device="cpu", max_bad=0.2)
    )
    rows = rows_of(folder / "p.csv")
    assert (len(rows), report.failed) == (13, 1)
    bad = next(row for row in rows if row["error"])
    assert (bad["path"], bad["class"], bad["score:dark"]) == (odd.removeprefix("photos/"), "", "")
    assert "no image of a known format" in bad["error"]


def test_a_head_refuses_features_and_weights_that_are_not_its_own(photo_head, tmp_path):
    folder = photo_head
    other = write_features(folder / "g.h5", *clusters(), CLASSES, layer="features.5")
    with pytest.raises(FeaturesMismatch, match=r"fitted on squeezenet1_1 features\.5.*holds alexnet features\.5"):
        predict_images(folder / "h.safetensors", other, folder / "p.csv")
    with pytest.raises(WeightsMismatch, match="the head was fitted on features of weights with sha256"):
        predict_images(
            folder / "h.safetensors", folder / "photos", folder / "p.csv", PredictConfig(weights_file="random:1")
        )


def test_predict_replaces_an_earlier_table_and_nothing_else(photo_head):
    folder = photo_head
    for name in ("h.safetensors", "f.h5", "notes.txt"):
        (folder / "notes.txt").write_text("mine")
        before = (folder / name).read_bytes()
        with pytest.raises(UsageError, match=r"is not a table of predictions|a table of predictions is written, and"):
            predict_images(folder / "h.safetensors", folder / "f.h5", folder / name)
        assert (folder / name).read_bytes() == before
    for _ in range(2):
        predict_images(folder / "h.safetensors", folder / "f.h5", folder / "p.csv")


def test_nan_among_the_features_is_refused_by_predict_and_evaluate(tmp_path):
    values, labels = clusters()
    fit_svm(write_features(tmp_path / "f.h5", values, labels, CLASSES), tmp_path / "h.safetensors", FitConfig(c=1.0))
    values[4, 4] = np.nan
    broken = write_features(tmp_path / "g.h5", values, labels, CLASSES)
    for verb in (evaluate_head, lambda head, file: predict_images(head, file, tmp_path / "p.csv")):
        with pytest.raises(FileFormatError, match="row 4 of the features given to the head holds NaN"):
            verb(tmp_path / "h.safetensors", broken)


def test_a_stored_split_that_is_not_used_is_mentioned_and_so_are_classes_without_a_test_image(tmp_path):
    values, labels = clusters()
    labels = np.where(np.arange(120) < 41, 0, np.where(np.arange(120) < 119, 1, 2))
    split_of = [i % 2 for i in range(120)]
    path = write_features(tmp_path / "f.h5", values, labels, CLASSES, split_of=split_of, splits=("test", "train"))
    notes = fit_svm(path, None, FitConfig(c=1.0)).notes
    assert len(notes) == 2
    assert "splits (test, train) that were not used" in notes[0]
    assert notes[1] == "1 class with too few images to be tested: cow"
    assert fit_svm(path, None, FitConfig(c=1.0, split_column=True)).notes[:1] != notes[:1]


def test_a_vector_is_the_same_feature_whatever_pooling_was_asked_for(photo_head):
    folder = photo_head
    for pool in ("none", "avg"):
        chosen = ExtractConfig(
            backbone="alexnet", layers="conv1,fc8", weights="random:0", device="cpu", pool=pool, batch_size=4
        )
        extract_features(folder / "photos", folder / f"{pool}.h5", chosen)
    fit_svm(folder / "none.h5", folder / "v.safetensors", FitConfig(layer="fc8", c=1.0, test=0.0))
    assert evaluate_head(folder / "v.safetensors", folder / "avg.h5").images == 12


def test_a_file_without_the_heads_layer_is_answered_with_the_command_that_makes_it(photo_head, tmp_path):
    other = write_features(photo_head / "g.h5", *clusters(), CLASSES, layer="fc6")
    with pytest.raises(FeaturesMismatch, match=r"fitted on squeezenet1_1 features\.5; .*g\.h5 holds fc6") as caught:
        evaluate_head(photo_head / "h.safetensors", other)
    assert "featx extract SOURCE --backbone squeezenet1_1 --layers features.5 --weights random:0" in str(caught.value)
    assert str(caught.value).endswith("-o NEW.h5")


def test_a_saved_head_can_be_read_by_whoever_the_umask_lets(tmp_path):
    path = write_features(tmp_path / "f.h5", *clusters(), CLASSES)
    before = os.umask(0o022)
    try:
        fit_svm(path, tmp_path / "h.safetensors", FitConfig(c=1.0))
    finally:
        os.umask(before)
    assert (tmp_path / "h.safetensors").stat().st_mode & 0o777 == 0o644
