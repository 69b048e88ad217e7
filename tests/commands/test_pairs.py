"""Pairs against scikit-learn, scipy and brute force; LFW's format; as a user runs it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import clusters, write_features
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score, roc_curve

from featx.analysis.pairs import Pairs, best_threshold, distances, equal_error_rate, verify_pairs
from featx.errors import UsageError


def pairs_of(count=200, seed=0):
    generator = np.random.default_rng(seed)
    values, labels = clusters(20, 3, 8, spread=1.0)
    first, second = generator.integers(0, 60, (2, count))
    return values, Pairs(first, second, labels[first] == labels[second], None)


def test_distances_are_those_of_scipy():
    values, pairs = pairs_of()
    a, b = values[pairs.first].astype(float), values[pairs.second].astype(float)
    for metric, name in (("cosine", "cosine"), ("l2", "euclidean")):
        right = np.array([cdist(x[None], y[None], name)[0, 0] for x, y in zip(a, b, strict=True)])
        np.testing.assert_allclose(distances(values, pairs, metric), np.nan_to_num(right, nan=1.0), atol=1e-9)
    right = [sum((x - y) ** 2 / (x + y) for x, y in zip(one, other, strict=True) if x + y > 0)
             for one, other in zip(a, b, strict=True)]  # fmt: skip
    np.testing.assert_allclose(distances(values, pairs, "chi-square"), right, rtol=1e-9)
    with pytest.raises(UsageError, match="chi-square is for values of 0 and more"):
        distances(values - 1, pairs, "chi-square")


def test_the_best_threshold_is_that_of_brute_force():
    for seed in range(20):
        generator = np.random.default_rng(seed)
        far = generator.integers(0, 9, 30).astype(float)
        same = generator.random(30) < 0.8 - far / 12
        candidates = [-1.0, *(np.unique(far) + 0.5)]
        most = max(((far <= one) == same).sum() for one in candidates)
        assert ((far <= best_threshold(far, same)) == same).sum() == most


def test_figures_are_those_of_scikit_learn_and_of_a_loop():
    values, pairs = pairs_of(400)
    folds = np.arange(400) % 10
    pairs = Pairs(pairs.first, pairs.second, pairs.same, folds)
    far = distances(values, pairs, "cosine")
    found = verify_pairs(far, pairs, "cosine", 0)
    wrong, right, _ = roc_curve(pairs.same, -far, drop_intermediate=False)
    np.testing.assert_allclose(found.false_positive, wrong)
    np.testing.assert_allclose(found.true_positive, right)
    assert found.auc == pytest.approx(roc_auc_score(pairs.same, -far))
    accuracies = []
    for fold in range(10):
        train, test = folds != fold, folds == fold
        options = np.sort(far[train])
        best = max(options, key=lambda one: ((far[train] <= one) == pairs.same[train]).sum())
        mine = best_threshold(far[train], pairs.same[train])
        assert ((far[train] <= mine) == pairs.same[train]).sum() >= ((far[train] <= best) == pairs.same[train]).sum()
        accuracies.append(((far[test] <= mine) == pairs.same[test]).mean())
    assert found.accuracy == pytest.approx(np.mean(accuracies))
    assert found.error == pytest.approx(np.std(accuracies, ddof=1) / np.sqrt(10))
    thresholds = np.unique(far)
    gaps = [abs((far[~pairs.same] <= one).mean() - (far[pairs.same] > one).mean()) for one in thresholds]
    nearest = thresholds[int(np.argmin(gaps))]
    rates = [(far[~pairs.same] <= nearest).mean(), (far[pairs.same] > nearest).mean()]
    assert min(rates) - 0.02 <= found.eer <= max(rates) + 0.02


def test_the_equal_error_rate_lies_between_points():
    assert equal_error_rate(np.array([0, 0.2, 0.4, 1]), np.array([0, 0.7, 0.9, 1])) == pytest.approx(0.2 + 0.2 / 4)
    assert equal_error_rate(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])) == 0


@pytest.fixture
def faces(tmp_path):
    values, labels = clusters(12, 4, 10, spread=0.1)
    names = [f"lfw/Person_{label}/Person_{label}_{place + 1:04d}.jpg" for label in range(4) for place in range(12)]
    write_features(tmp_path / "f.h5", values, labels, tuple("abcd"), paths=names)
    return tmp_path / "f.h5", names, values


def test_lfws_file_and_a_table_give_the_same(faces, tmp_path, featx):
    file, names, _ = faces
    lines, rows = ["10 2"], []
    generator = np.random.default_rng(0)
    for fold in range(10):
        for same in (True, False):
            for _ in range(2):
                one, other = generator.permutation(4)[:2]
                a, b = generator.permutation(12)[:2] + 1
                if same:
                    lines.append(f"Person_{one}\t{a}\t{b}")
                    other = one
                else:
                    lines.append(f"Person_{one}\t{a}\tPerson_{other}\t{b}")
                rows.append([names[one * 12 + a - 1], names[other * 12 + b - 1], int(same), fold])
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
    with (tmp_path / "pairs.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["path", "path2", "same", "fold"], *rows])
    tables = []
    for name in ("pairs.txt", "pairs.csv"):
        done = featx(
            "pairs",
            file,
            tmp_path / name,
            "--metric",
            "cosine,chi-square,l2",
            "-o",
            tmp_path / f"out-{name}",
            "--json",
        )
        assert done.status == 0, done.err
        tables.append(done.json["rows"])
        assert (tmp_path / f"out-{name}" / "roc.png").stat().st_size > 5000
    assert tables[0] == tables[1]
    assert float(tables[0][0][1]) > 90
    with (tmp_path / "out-pairs.csv" / "pairs.csv").open(newline="") as out:
        written = list(csv.DictReader(out))
    assert [row["path"] for row in written] == [row[0] for row in rows]


def test_what_cannot_be_compared_is_said(faces, tmp_path, featx):
    file, names, _ = faces
    good = "".join(f"{names[0]},{names[one]},{int(one < 12)}\n" for one in range(1, 40))
    for text, reason in (
        ("a,b\n", "it needs path, path2, same"),
        (f"path,path2,same\n{good}nobody.jpg,{names[0]},1\n", "line 41: nobody.jpg is not among the images"),
        (f"path,path2,same\n{names[0]},{names[1]},maybe\n", "line 2: same is 'maybe'"),
        (f"path,path2,same\n{names[0]},{names[1]},1\n", "10 of each are needed"),
        ("2 1\nPerson_0 1 2\n", "has 1 pairs; its first line says 4"),
        ("1 1\nPerson_0 1 2\nPerson_0 x Person_1 1\n", "line 3: a pair is NAME N1 N2"),
        (f"path,path2,same,fold\n{names[0]},{names[1]},1,2\n{names[0]},{names[1]},1,\n", "some pairs have a fold"),
    ):
        (tmp_path / "p.csv").write_text(text)
        done = featx("pairs", file, tmp_path / "p.csv", "-o", tmp_path / "out")
        assert (done.status, reason in done.err) == (2, True), done.err
    (tmp_path / "p.csv").write_text(f"path,path2,same\n{good}")
    done = featx("pairs", file, tmp_path / "p.csv", "--metric", "hamming", "-o", tmp_path / "out")
    assert (done.status, "--metric is 'hamming'" in done.err) == (2, True)
    done = featx("pairs", file, tmp_path / "none.csv", "-o", tmp_path / "out")
    assert (done.status, "cannot be read: No such file" in done.err) == (2, True)
    assert not (tmp_path / "out").exists()
