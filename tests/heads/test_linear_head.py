"""Splits, normalisation, measures, the search for C and the head's file, each against something independent."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from conftest import clusters
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, top_k_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer as SklearnNormalizer
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featx.errors import DiskError, FeaturesMismatch, FileFormatError, LabelError
from featx.heads.linear_head import LinearHead
from featx.heads.normalize import Normalizer
from featx.heads.quality.metrics import measure
from featx.heads.selection.folds import folds_of
from featx.heads.selection.search import fit_heads, grid_for
from featx.heads.solver.solver import solve
from featx.heads.splits import split_by_name, split_by_share, split_per_class

RECIPE = {
    "backbone": "alexnet", "node": "classifier.5", "pooling": "none", "weights": {"sha256": "ab" * 32, "name": "x", "spec": "x"},
    "preprocess": {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "squash": False}, "exif": False, "precision": "fp32", "batch_size": 32, "decode": "cpu", "command": "featx extract SOURCE --layers fc7",
}  # fmt: skip


def head(weights: np.ndarray, bias: np.ndarray, kind: str = "svm", normalize: str = "none") -> LinearHead:
    return LinearHead(kind, weights, bias, [f"c{i}" for i in range(len(bias))], normalize, "fc7", RECIPE)


# --- splits


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_split_by_share_uses_every_row_once_and_leaves_each_class_something_to_train_on(labels, share, seed):
    labels = np.array(labels, np.int32)
    train, test = split_by_share(labels, share, seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert set(labels[train]) == set(labels)
    for label in set(labels):
        total, held_out = (labels == label).sum(), (labels[test] == label).sum()
        assert abs(held_out - share * total) <= 0.5 or held_out == total - 1


def test_a_split_depends_on_the_seed_and_on_nothing_else():
    labels = np.repeat(np.arange(3, dtype=np.int32), 20)
    assert all(np.array_equal(a, b) for a, b in zip(split_by_share(labels, 0.3, 1), split_by_share(labels, 0.3, 1),
                                                     strict=True))  # fmt: skip
    assert not np.array_equal(split_by_share(labels, 0.3, 1)[1], split_by_share(labels, 0.3, 2)[1])


def test_per_class_takes_that_many_of_each_and_says_which_class_has_too_few():
    labels = np.array([0] * 5 + [1] * 9, np.int32)
    train, test = split_per_class(labels, 4, 0, ["cat", "dog"])
    assert np.bincount(labels[train]).tolist() == [4, 4]
    assert np.bincount(labels[test]).tolist() == [1, 5]
    with pytest.raises(LabelError, match="class 'cat' has 5 usable images; --per-class 6"):
        split_per_class(labels, 6, 0, ["cat", "dog"])


def test_the_stored_split_is_used_by_name():
    split_of = np.array([0, 1, 2, 1, -1], np.int32)
    train, test, name = split_by_name(split_of, ["test", "Train", "val"])
    assert (train.tolist(), test.tolist(), name) == ([1, 3], [0], "test")
    _, held_out, name = split_by_name(split_of, ["test", "Train", "val"], choosing=True)
    assert (held_out.tolist(), name) == ([2], "val")
    assert split_by_name(split_of, ["test", "Train", "other"], choosing=True)[2] == "test"
    with pytest.raises(LabelError, match="the file's splits: val"):
        split_by_name(split_of, ["val"])


# --- normalisation


@pytest.mark.parametrize("kind", ["none", "l2", "standard"])
def test_normalisation_is_scikit_learns(kind):
    train, test = clusters(seed=1)[0], clusters(seed=2)[0]
    train[:, 3] = 7.0  # a constant column
    test[0] = 0.0  # a row without length
    reference = {"none": None, "l2": SklearnNormalizer(), "standard": StandardScaler()}[kind]
    expected = test if reference is None else reference.fit(train).transform(test)
    np.testing.assert_allclose(Normalizer.fit(kind, train)(test), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_a_folded_standardisation_gives_the_same_scores(kind):
    values, labels = clusters(seed=3)
    normalizer = Normalizer.fit("standard", values)
    solution = solve(kind, normalizer(values), labels, 0.1)
    folded = head(*normalizer.fold(solution.weights, solution.bias))
    direct = normalizer(values).astype(np.float64) @ solution.weights.T + solution.bias
    np.testing.assert_allclose(folded.scores(values), direct, atol=1e-5)


# --- measures


def test_measures_are_scikit_learns():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(200, 8)), generator.integers(0, 8, 200)
    found = measure(scores, labels, list("abcdefgh"))
    predicted = scores.argmax(1)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert found.mean_per_class == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert found.confusion == confusion_matrix(labels, predicted).tolist()


def test_a_class_without_test_images_does_not_count_and_top5_needs_more_than_five():
    found = measure(np.eye(3)[[0, 0, 1]], np.array([0, 0, 0]), ["a", "b", "c"])
    assert found.per_class == {"a": pytest.approx(2 / 3), "b": None, "c": None}
    assert found.mean_per_class == pytest.approx(2 / 3)
    assert found.top5 is None


# --- the solver and the search


def search_for(kind, values, labels, normalize, *, folds, seed):
    """The library's own way to choose C, for features in memory."""
    names = [str(k) for k in range(labels.max() + 1)]
    return fit_heads(
        kind, values, np.arange(len(values)), labels, names, c=None, folds=folds, seed=seed, normalize=normalize,
        device=torch.device("cpu"), memory_bytes=1 << 30,
    )  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_scores_and_probabilities_are_scikit_learns_own(kind, classes):
    values, labels = clusters(classes=classes, seed=5)
    solution = solve(kind, values, labels, 0.5, tolerance=1e-12)
    ours = head(solution.weights, solution.bias, kind)
    if kind == "svm":
        model = LinearSVC(C=0.5, tol=1e-10, random_state=0, max_iter=1_000_000).fit(values, labels)
        expected = model.decision_function(values)
        scores = ours.outputs(values)
        np.testing.assert_allclose(scores if classes > 2 else scores[:, 1], expected, atol=1e-6)
    else:
        model = LogisticRegression(C=0.5, tol=1e-9, max_iter=5000).fit(values.astype(float), labels)
        np.testing.assert_allclose(ours.outputs(values), model.predict_proba(values), atol=1e-5)
    assert (ours.scores(values).argmax(1) == model.predict(values)).all()


@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_many_more_values_than_rows_give_the_same_optimum(kind):
    values, labels = clusters(per_class=8, width=200, seed=8)
    assert values.shape[1] >= 4 * len(values)
    solution = solve(kind, values, labels, 0.01, tolerance=1e-9)
    if kind == "svm":
        model = LinearSVC(C=0.01, tol=1e-8, max_iter=100_000, random_state=0).fit(values, labels)
    else:
        model = LogisticRegression(C=0.01, tol=1e-8, max_iter=10_000).fit(values.astype(float), labels)
    found = np.column_stack([solution.weights, solution.bias])
    expected = np.column_stack([model.coef_, model.intercept_])
    if kind == "softmax":
        found, expected = (m - m.mean(axis=0) for m in (found, expected))  # a constant per column is free
    # Both stop at a gradient of 1e-5 or below; the flat direction of the free intercept shows it most.
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()


def test_the_chosen_c_and_its_curve_are_those_of_grid_search():
    values, labels = clusters(per_class=30, seed=6, spread=2.5)
    found = search_for("svm", values, labels.astype(np.int32), "l2", folds=4, seed=3)
    c, curve = found.c, found.curve
    grid = [point.c for point in curve]
    search = GridSearchCV(
        make_pipeline(SklearnNormalizer(), LinearSVC(random_state=3, max_iter=10_000)),
        {"linearsvc__C": grid},
        cv=StratifiedKFold(4, shuffle=True, random_state=3),
    ).fit(values, labels)
    np.testing.assert_allclose([p.accuracy for p in curve], search.cv_results_["mean_test_score"], atol=0.011)
    assert c == grid[int(np.argmax([p.accuracy for p in curve]))]
    assert len({p.accuracy for p in curve}) > 2


def test_scaling_the_features_moves_the_grid_and_nothing_else():
    values = clusters(per_class=20, seed=7)[0]
    variance = float(values.var(axis=0).sum())
    grid, scaled = grid_for(variance), grid_for(variance * 100**2)
    np.testing.assert_allclose(np.array(grid) / np.array(scaled), 1e4)
    assert len(grid) == 7


def test_a_class_with_fewer_images_than_folds_blocks_nothing():
    labels = np.array([0] * 10 + [1] * 3 + [2], np.int32)
    held_out = folds_of(labels, 5, 0, ["cat", "dog", "owl"])
    for fold in held_out:
        assert set(labels[~fold]) == {0, 1, 2}  # every fold trains on every class
    assert held_out.sum(0).tolist() == [1] * 13 + [0]
    together = np.array([*range(10), 10, 10, 10, 13])  # all dogs are one group, which no fold can leave out
    held_out = folds_of(labels, 5, 0, ["cat", "dog", "owl"], together)
    assert held_out.sum(0).tolist() == [1] * 10 + [0] * 4
    with pytest.raises(LabelError, match="the largest class, 'cat', has 3 images to train on; --folds 5 needs 5"):
        folds_of(np.array([0, 0, 0, 1], np.int32), 5, 0, ["cat", "dog"])


# --- the head and its file


def test_a_head_comes_back_from_its_file_as_it_was(tmp_path):
    generator = np.random.default_rng(0)
    weights = np.asfortranarray(generator.normal(size=(3, 7)))  # what scikit-learn's coef_ can be
    saved = head(weights, generator.normal(size=3), "softmax", "l2")
    saved.save(tmp_path / "h.safetensors")
    loaded = LinearHead.load(tmp_path / "h.safetensors")
    np.testing.assert_array_equal(loaded.weights, weights)
    assert (loaded.classes, loaded.kind, loaded.normalize, loaded.recipe) == (
        saved.classes, "softmax", "l2", RECIPE,
    )  # fmt: skip
    values = generator.normal(size=(5, 7))
    np.testing.assert_array_equal(loaded.outputs(values), saved.outputs(values))
    assert [p.name for p in tmp_path.iterdir()] == ["h.safetensors"]


def test_softmax_outputs_are_probabilities_even_for_huge_scores():
    outputs = head(np.array([[1e4], [-1e4], [0.0]]), np.zeros(3), "softmax").outputs(np.array([[1.0], [-1.0]]))
    np.testing.assert_allclose(outputs, [[1, 0, 0], [0, 1, 0]])


def test_features_of_another_length_or_recipe_are_refused_and_said():
    ours = head(np.ones((2, 4)), np.zeros(2))
    with pytest.raises(FeaturesMismatch, match=r"rows of 4 values \(fc7\), got 5"):
        ours.scores(np.ones((1, 5)))
    other = {**RECIPE, "backbone": "vgg16"}
    with pytest.raises(FeaturesMismatch, match=r"fitted on alexnet fc7.*f\.h5 holds vgg16 fc7.*featx extract") as bad:
        ours.refuse_other_features("fc7", other, "f.h5")
    assert bad.value.exit_status == 4
    for change in ({"pooling": "avg"}, {"exif": True}, {"preprocess": {"crop": 200}}, {"node": "classifier.4"},
                   {"weights": {"sha256": "cd"}}):  # fmt: skip
        with pytest.raises(FeaturesMismatch):
            ours.refuse_other_features("fc7", {**RECIPE, **change}, "f.h5")
    ours.refuse_other_features("fc7", {**RECIPE, "precision": "bf16"}, "f.h5")


@pytest.mark.parametrize(
    "how",
    [
        "missing",
        "text",
        "other",
        "metadata",
        "shape",
        "json",
        "keys",
        "list",
        "kind",
        "same class twice",
        "NaN",
        "no recipe",
        "fifo",
        "folder",
    ],
)
def test_a_file_that_is_no_head_is_refused_in_one_line(tmp_path, how):
    path = tmp_path / "h.safetensors"
    head(np.ones((2, 4)), np.zeros(2)).save(path)
    tensors = load_file(path)
    described = {
        "kind": "svm",
        "classes": ["a", "b"],
        "normalize": "none",
        "layer": "fc7",
        "recipe": {},
        "report": {},
    }
    metadata = {"featx head 1": json.dumps(described)}
    match how:
        case "missing":
            path.unlink()
        case "text":
            path.write_text("hello")
        case "other":
            save_file(tensors, path)
        case "metadata":
            save_file(tensors, path, {"featx head 0": json.dumps(described)})
        case "shape":
            save_file({**tensors, "bias": np.zeros(3)}, path, metadata)
        case "list":
            save_file(tensors, path, {"featx head 1": "[1]"})
        case "kind":
            save_file(tensors, path, {"featx head 1": json.dumps({**described, "kind": "magic"})})
        case "same class twice":
            save_file(tensors, path, {"featx head 1": json.dumps({**described, "classes": ["a", "a"]})})
        case "no recipe":
            save_file(tensors, path, {"featx head 1": json.dumps({**described, "recipe": {"backbone": "alexnet"}})})
        case "NaN":
            save_file({**tensors, "weights": tensors["weights"] * np.nan}, path, metadata)
        case "fifo":
            path.unlink()
            os.mkfifo(path)
        case "folder":
            path.unlink()
            path.mkdir()
        case "json":
            save_file(tensors, path, {"featx head 1": "{"})
        case "keys":
            del described["classes"]
            save_file(tensors, path, {"featx head 1": json.dumps(described)})
    with pytest.raises(FileFormatError, match=r"h\.safetensors") as caught:
        LinearHead.load(path)
    assert "\n" not in str(caught.value)


def test_a_head_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError):
        head(np.ones((2, 4)), np.zeros(2)).save(tmp_path / "file" / "h.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
