"""RDMs and similarities of layers against SciPy, the papers' formulas, and what must be the same for a rotation."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import write_features
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.distance import cdist, pdist, squareform
from scipy.stats import kendalltau, ortho_group, spearmanr

import featx
from featx.analysis import dissimilarity, similarity
from featx.errors import PlanMismatch, UnknownLayer, UsageError


@pytest.fixture
def pair():
    generator = np.random.default_rng(0)
    x = generator.normal(2, 1, (40, 17))
    return x, 0.6 * x[:, :9] + generator.normal(0, 1, (40, 9))


# --- dissimilarities


@pytest.mark.parametrize("metric", dissimilarity.METRICS)
def test_dissimilarities_are_scipys(pair, metric, monkeypatch):
    monkeypatch.setattr(dissimilarity, "_BYTES_AT_ONCE", 8 * 17 * 11)  # four blocks, the last one smaller
    found = np.empty((40, 40))
    seen = []
    dissimilarity.dissimilarities(pair[0], metric, found, seen.append)
    np.testing.assert_allclose(found, squareform(pdist(pair[0], metric)), atol=1e-12)
    assert seen == [11, 11, 11, 7]
    assert (found == found.T).all()
    assert not found.diagonal().any()


def test_what_is_not_defined_is_nan_and_near_rows_keep_their_distance():
    rows = np.random.default_rng(0).normal(1e4, 1, (6, 5))
    rows[1], rows[2], rows[3] = np.nan, 7.3, rows[0] + 1e-7
    rows[4] = 0
    for metric, undefined in (("correlation", [1, 2, 4]), ("cosine", [1, 4]), ("euclidean", [1])):
        found = similarity.dissimilarity_matrix(rows, metric)
        assert np.flatnonzero(np.isnan(found.diagonal())).tolist() == undefined, metric
        assert np.isnan(found[undefined]).all()
    near = similarity.dissimilarity_matrix(rows, "euclidean")[0, 3]
    assert near == pytest.approx(np.linalg.norm(rows[0] - rows[3]), rel=1e-6)


# --- similarities


def test_cka_is_that_of_the_definition_over_features(pair):
    x, y = (one - one.mean(0) for one in pair)
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert similarity.cka(similarity.gram(pair[0]), similarity.gram(pair[1])) == pytest.approx(expected, rel=1e-12)


def test_unbiased_cka_is_song_and_colleagues_estimate_and_near_zero_for_noise(pair):
    def hsic(k, m):  # equation 5, with matrices
        n, one = len(k), np.ones((len(k), 1))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        first = np.trace(k @ m)
        second = (one.T @ k @ one * (one.T @ m @ one)).item() / ((n - 1) * (n - 2))
        third = 2 * (one.T @ k @ m @ one).item() / (n - 2)
        return (first + second - third) / (n * (n - 3))

    k, m = (one @ one.T for one in pair)
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert similarity.cka_unbiased(*pair, batch=40, seed=0) == pytest.approx(expected, rel=1e-9)
    order = np.random.default_rng(3).permutation(40)
    parts = [np.sort(part) for part in np.array_split(order, 4)]
    sums = np.array(
        [
            [hsic(a[p] @ a[p].T, b[p] @ b[p].T) for a, b in ((pair[0], pair[1]), (pair[0],) * 2, (pair[1],) * 2)]
            for p in parts
        ]
    )
    first, second, third = sums.sum(0)
    assert similarity.cka_unbiased(*pair, batch=10, seed=3) == pytest.approx(
        first / np.sqrt(second * third), rel=1e-9
    )
    generator = np.random.default_rng(1)
    noise = generator.normal(size=(60, 500)), generator.normal(size=(60, 500))
    assert similarity.cka(*map(similarity.gram, noise)) > 0.8  # the bias of few images and many values
    assert abs(similarity.cka_unbiased(*noise, batch=60, seed=0)) < 0.1


def test_rsa_is_the_rank_correlation_over_pairs(pair):
    a, b = (squareform(pdist(one, "correlation")) for one in pair)
    mine = [similarity.dissimilarity_matrix(one, "correlation") for one in pair]
    upper = np.triu_indices(40, 1)
    assert similarity.rsa(*mine) == pytest.approx(spearmanr(a[upper], b[upper]).statistic, rel=1e-9)
    assert similarity.rsa(*mine, "kendall") == pytest.approx(kendalltau(a[upper], b[upper]).statistic, rel=1e-9)
    low, high = similarity.rsa_interval(*mine, "spearman", 60, 0)
    assert low < similarity.rsa(*mine) < high
    # of twins in a bootstrap nothing is learnt: the same representation is 1 with and without them
    assert similarity.rsa_interval(mine[0], mine[0], "spearman", 5, 0) == pytest.approx((1.0, 1.0))


def test_procrustes_is_what_is_left_after_the_best_rotation(pair):
    x, y = (one - one.mean(0) for one in pair)
    y = np.hstack([y, np.zeros((40, 8))])  # SciPy wants as many values on both sides
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    rotation, total = orthogonal_procrustes(x, y)
    found = similarity.procrustes(*map(similarity.factor, pair))
    assert found == pytest.approx(total, rel=1e-9)
    assert found == pytest.approx(np.sqrt(1 - scipy_procrustes(y, x)[2]), rel=1e-9)
    assert found == pytest.approx(1 - np.linalg.norm(x @ rotation - y) ** 2 / 2, rel=1e-9)


def test_a_rotation_scale_and_shift_change_nothing_that_should_not_change(pair):
    x = pair[0]
    turned = 3 * x @ ortho_group.rvs(17, random_state=0) + 5
    grams = similarity.gram(x), similarity.gram(turned)
    assert similarity.cka(*grams) == pytest.approx(1)
    assert similarity.procrustes(*map(similarity.factor, (x, turned))) == pytest.approx(1)
    wide = np.random.default_rng(2).normal(size=(12, 30))  # more values than images
    again = wide @ ortho_group.rvs(30, random_state=1)
    assert similarity.procrustes(*map(similarity.factor, (wide, again))) == pytest.approx(1)
    assert similarity.cka_unbiased(x, turned, 20, 0) == pytest.approx(1)
    euclidean = [similarity.dissimilarity_matrix(one, "euclidean") for one in (x, turned)]
    assert similarity.rsa(*euclidean) == pytest.approx(1)


# --- the commands


@pytest.fixture
def featx_command(request):
    return request.getfixturevalue("featx")


@pytest.fixture
def files(tmp_path, pair):
    labels = np.repeat([0, 1], 20)
    hashes = np.random.default_rng(9).integers(1, 256, (40, 32), np.uint8)
    for name, values in zip("ab", pair, strict=True):
        write_features(
            tmp_path / f"{name}.h5", values.astype(np.float32), labels, ("cat", "dog"), failed=(7,), sha256=hashes
        )
    return tmp_path / "a.h5", tmp_path / "b.h5"


def test_rdm_writes_the_matrix_of_the_rows_in_order(files, tmp_path, featx_command):
    done = featx_command("rdm", files[0], "-o", tmp_path / "rdm", "--metric", "cosine")
    assert done.status == 0, done.err
    assert "note: 1 image that could not be read is left out, so row i is not row i of" in done.err
    opened = featx.open_features(files[0])
    rows = [row for row in range(40) if row != 7]
    found = np.load(tmp_path / "rdm" / "fc7.npy", mmap_mode="r")
    expected = cdist(opened["fc7"][rows].astype(np.float64), opened["fc7"][rows].astype(np.float64), "cosine")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    listed = list(csv.DictReader((tmp_path / "rdm" / "images.csv").read_text().splitlines()))
    assert [one["path"] for one in listed] == [opened.paths[row] for row in rows]
    labels = np.array([one["label"] for one in listed])
    upper = np.triu_indices(39, 1)
    same = (labels[:, None] == labels[None])[upper]
    report = featx_command("rdm", files[0], "-o", tmp_path / "rdm", "--metric", "cosine", "--json").json
    assert [float(value) for value in report["rows"][0][1:]] == pytest.approx(
        [expected[upper].mean(), expected[upper][same].mean(), expected[upper][~same].mean()], abs=1e-4
    )
    assert (tmp_path / "rdm" / "fc7.png").stat().st_size > 5000
    with pytest.raises(PlanMismatch):
        featx.representational_dissimilarity(files[0], tmp_path / "rdm")
    with pytest.raises(UnknownLayer, match="holds no layer 'fc9'"):
        featx.representational_dissimilarity(files[0], tmp_path / "x", featx.RdmConfig(layers="fc9"))


@pytest.mark.parametrize("metric", similarity.METRICS)
def test_similarity_compares_what_both_files_have(files, tmp_path, metric):
    config = featx.SimilarityConfig(metric=metric, bootstrap=10 if metric == "rsa" else 0)
    report = featx.compare_representations(*files, tmp_path / "s", config)
    one, two = (featx.open_features(path)["fc7"][[row for row in range(40) if row != 7]] for path in files)
    expected = {
        "cka": lambda: similarity.cka(similarity.gram(one), similarity.gram(two)),
        "cka-unbiased": lambda: similarity.cka_unbiased(one, two, 512, 0),
        "rsa": lambda: similarity.rsa(*(similarity.dissimilarity_matrix(v, "correlation") for v in (one, two))),
        "rsa-kendall": lambda: similarity.rsa(
            *(similarity.dissimilarity_matrix(v, "correlation") for v in (one, two)), "kendall"
        ),
        "procrustes": lambda: similarity.procrustes(similarity.factor(one), similarity.factor(two)),
    }[metric]()
    with np.load(tmp_path / "s" / "similarity.npz") as found:
        assert found["values"][0, 0] == pytest.approx(expected, rel=1e-6)
        assert ("low" in found) == (metric == "rsa")
    assert report.rows[0][0] == "fc7"
    assert report.rows[0][1].startswith(f"{expected:.3f}")
    assert featx.compare_representations(*files, tmp_path / "s", config) == report


def test_files_of_other_images_have_nothing_to_compare(files, tmp_path):
    other = tmp_path / "other.h5"
    write_features(other, np.ones((5, 3), np.float32), [0, 0, 1, 1, 1], ("cat", "dog"), failed=(0, 1, 2, 3, 4))
    with pytest.raises(UsageError, match="0 images in common; 4 are needed"):
        featx.compare_representations(files[0], other, tmp_path / "s")


def test_an_rdm_is_the_same_in_every_format(tmp_path):
    import h5py

    values = np.random.default_rng(0).normal(1, 1, (12, 7))
    path = write_features(tmp_path / "f.h5", values, [0] * 12, ("a",), failed=(4,))
    for kind in ("npy", "csv", "h5"):
        featx.representational_dissimilarity(path, tmp_path / kind, featx.RdmConfig(save=kind))
    expected = squareform(pdist(np.delete(values.astype(np.float32).astype(float), 4, 0), "correlation"))
    np.testing.assert_allclose(np.load(tmp_path / "npy" / "fc7.npy"), expected, atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "csv" / "fc7.csv", delimiter=","), expected, atol=1e-6)
    with h5py.File(tmp_path / "h5" / "fc7.h5") as file:
        np.testing.assert_allclose(file["rdm"][:], expected, atol=1e-6)
