"""What is said of scores against scikit-learn, the definitions, and bootstraps drawn image by image."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import clusters, write_features
from scipy.special import softmax
from sklearn import metrics
from sklearn.calibration import calibration_curve

import featx as library
from featx.artifacts.evaluation import Evaluation
from featx.errors import LabelError
from featx.heads.quality.measures import calibration, mcnemar, measures_of
from featx.heads.quality.metrics import decisions

CLASSES = ["a", "b", "c", "d"]


@pytest.fixture
def scored():
    """Scores and probabilities of 300 images of three of four classes, about two thirds right."""
    generator = np.random.default_rng(0)
    labels = generator.choice(3, 300, p=[0.6, 0.3, 0.1])
    scores = generator.normal(0, 1, (300, 4))
    scores[np.arange(300), labels] += 1.5
    scores[:, 3] -= 3
    chances = np.exp(scores)
    return scores, chances / chances.sum(1, keepdims=True), labels


def measured(scores, chances, labels, bootstrap=0):
    return measures_of(scores, decisions(scores, labels), labels, CLASSES, chances, bootstrap=bootstrap)


def test_per_class_and_macro_values_are_scikit_learns(scored):
    scores, _chances, labels = scored
    found, predicted = measured(*scored), scores.argmax(1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(3), zero_division=0
    )
    for place, name in enumerate("abc"):
        assert found.precision[name] == pytest.approx(precision[place])
        assert found.recall[name] == pytest.approx(recall[place])
        assert found.f1[name] == pytest.approx(f1[place])
    assert found.precision["d"] is None
    assert found.recall["d"] is None
    assert found.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, labels=range(3), average="macro"))
    assert found.macro_precision == pytest.approx(precision.mean())
    aucs = [metrics.roc_auc_score(labels == k, scores[:, k]) for k in range(3)]
    assert found.roc_auc == pytest.approx(np.mean(aucs))
    areas = [metrics.average_precision_score(labels == k, scores[:, k]) for k in range(3)]
    assert found.average_precision == pytest.approx(np.mean(areas))


def test_the_calibration_error_is_that_of_its_definition(scored):
    _, chances, labels = scored
    predicted = chances.argmax(1)
    error, bins = calibration(chances, predicted, labels)
    confidence = chances.max(1)
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            gap = abs((predicted == labels)[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    assert error == pytest.approx(expected)
    true, said = calibration_curve(predicted == labels, confidence, n_bins=15)
    assert [one.accuracy for one in bins] == pytest.approx(true)
    assert [one.confidence for one in bins] == pytest.approx(said)
    assert sum(one.images for one in bins) == 300
    assert calibration(np.eye(4)[labels], labels, labels)[0] == 0
    assert measured(scored[0], None, labels).calibration_error is None


def test_intervals_are_those_of_images_drawn_again(scored):
    scores, _, labels = scored
    found = measured(*scored, bootstrap=4000)
    correct = scores.argmax(1) == labels
    generator = np.random.default_rng(1)
    draws = [correct[generator.integers(0, 300, 300)].mean() for _ in range(4000)]
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.01)
    of_class = [correct[labels == k] for k in range(3)]
    means = [
        np.mean([own[generator.integers(0, len(own), len(own))].mean() for own in of_class]) for _ in range(4000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    assert (found.mean_per_class.low, found.mean_per_class.high) == pytest.approx((low, high), abs=0.012)
    assert measured(*scored).accuracy is None


def test_mcnemar_is_the_binomial_test_of_the_images_they_differ_on():
    first = np.array([1] * 50 + [1] * 4 + [0] * 14 + [0] * 32, bool)
    second = np.array([1] * 50 + [0] * 4 + [1] * 14 + [0] * 32, bool)
    found = mcnemar(first, second, bootstrap=2000)
    assert (found.both, found.only_first, found.only_second, found.neither) == (50, 4, 14, 32)
    from math import comb

    tail = sum(comb(18, k) for k in range(5)) / 2**18
    assert found.p == pytest.approx(2 * tail)
    assert found.difference == pytest.approx(0.1)
    generator = np.random.default_rng(0)
    drawn = [(second[rows].mean() - first[rows].mean()) for rows in generator.integers(0, 100, (2000, 100))]
    assert (found.interval.low, found.interval.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.012)
    assert mcnemar(first, first, bootstrap=100).p == 1


@pytest.fixture
def heads(tmp_path):
    values, labels = clusters(per_class=40, spread=4.0, seed=2)
    hashes = np.random.default_rng(3).integers(1, 256, (120, 32), np.uint8)
    file = write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"), sha256=hashes)
    made = []
    for name, c in (("strong", 1.0), ("weak", 1e-6)):
        library.fit_softmax(file, tmp_path / f"{name}.safetensors", library.FitConfig(c=c, per_class=3, seed=5))
        made.append(tmp_path / f"{name}.safetensors")
    return file, made


def test_evaluate_says_all_of_it_and_reads_it_back(heads, tmp_path):
    file, (head, _) = heads
    report = library.evaluate_head(head, file, output=tmp_path / "r.json")
    loaded, opened = library.LinearHead.load(head), library.open_features(file)
    chances = softmax(loaded.scores(opened["fc7"]), axis=1)
    assert report.measures.roc_auc == pytest.approx(
        metrics.roc_auc_score(opened.labels, chances, multi_class="ovr"), abs=1e-12
    )
    areas = [metrics.average_precision_score(opened.labels == k, chances[:, k]) for k in range(3)]
    assert report.measures.average_precision == pytest.approx(np.mean(areas), abs=1e-12)
    assert report.measures.calibration_error is not None
    assert report.measures.accuracy.low < report.metrics.accuracy < report.measures.accuracy.high
    assert "95 % intervals: accuracy " in str(report)
    assert Evaluation(tmp_path / "r.json").read().result == report
    assert library.evaluate_head(head, file, output=tmp_path / "r.json") == report


def test_a_head_alone_decides_in_a_fusion_as_everywhere(tmp_path):
    """Platt's probabilities can put another class first than the scores do."""
    made = []
    for seed in (0, 1):
        values, labels = clusters(per_class=40, spread=2.0, seed=seed)
        keep = np.sort(np.concatenate([np.flatnonzero(labels == k)[: (40, 15, 6)[k]] for k in range(3)]))
        file = write_features(tmp_path / f"{seed}.h5", values[keep], labels[keep], ("a", "b", "c"))
        head = tmp_path / f"{seed}.safetensors"
        library.fit_svm(file, head, library.FitConfig(c=1.0, test=0.3, calibrate="platt"))
        made.append((head, file))
    report = library.fuse_heads(made, tmp_path / "fused.csv", library.FuseConfig(test=0.3))
    differing = 0
    with (tmp_path / "fused.csv").open() as table:
        lines = list(csv.DictReader(table))
    for path, file in made:
        head, opened = library.LinearHead.load(path), library.open_features(file)
        rows = [opened.paths.index(line["path"]) for line in lines if line["part"] == "test"]
        scores = head.scores(opened["fc7"][rows])
        differing += int((head.rule.outputs(scores).argmax(1) != scores.argmax(1)).sum())
        assert report.alone[str(path)] == head.measure_scores(scores, opened.labels[rows])
        decided = [line[str(path)] for line in lines if line["part"] == "test"]
        assert decided == [head.classes[k] for k in scores.argmax(1)]
    assert differing


def test_two_heads_are_compared_on_the_same_images(heads, featx, tmp_path):
    file, made = heads
    done = featx("compare", *made, file, "--json")
    assert done.status == 0, done.err
    opened = library.open_features(file)
    right = [
        decisions(library.LinearHead.load(head).scores(opened["fc7"]), opened.labels) == opened.labels
        for head in made
    ]
    found = done.json
    assert found["accuracies"] == pytest.approx([one.mean() for one in right])
    assert found["test"]["only_first"] == int((right[0] & ~right[1]).sum())
    assert found["trained_on"] == 9
    assert "note: 9 of these images are among those" in featx("compare", *made, file).out
    other = write_features(
        tmp_path / "o.h5", np.ones((4, opened["fc7"].shape[1]), np.float32), [0, 0, 1, 1], ("x", "y")
    )
    with pytest.raises(LabelError, match="no image of a class that both heads know"):
        library.compare_heads(*made, other)
