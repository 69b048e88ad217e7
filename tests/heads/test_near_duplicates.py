"""Near-duplicates by features, against all cosines computed at once; and that they stay on one side of a split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import write_features
from sklearn.metrics.pairwise import cosine_similarity

import featx
from featx.artifacts.head_rows import kept_together, split_rows
from featx.heads.selection import near_duplicates
from featx.heads.selection.near_duplicates import neighbourhood

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def values():
    generator = np.random.default_rng(0)
    found = generator.normal(size=(90, 20)).astype(np.float32) + 3
    found[60:75] = found[:15] + 0.05 * generator.normal(size=(15, 20))  # near-duplicates of the first 15
    found[80] = found[3]
    return found


@pytest.mark.parametrize("bytes_at_once", [1 << 26, 80 * 7, 100])  # in one block, in sevens, and read again each time
@pytest.mark.parametrize("rows", [np.arange(90), np.arange(0, 90, 2)])
def test_pairs_and_neighbours_are_those_of_all_cosines(monkeypatch, values, rows, bytes_at_once):
    monkeypatch.setattr(near_duplicates, "_BYTES_AT_ONCE", bytes_at_once)
    found = neighbourhood(values, rows, 0.9, 4, CPU)
    chosen = values[rows].astype(np.float64)
    cosines = cosine_similarity(chosen - chosen.mean(0))
    expected = {(i, j) for i, j in zip(*np.nonzero(cosines >= 0.9), strict=True) if i < j}
    assert {tuple(pair) for pair in found.pairs.tolist()} == expected
    assert expected
    np.testing.assert_allclose(found.cosines, [cosines[i, j] for i, j in found.pairs], atol=1e-5)
    assert (np.diff(found.cosines) <= 0).all()
    np.fill_diagonal(cosines, -2)
    np.testing.assert_allclose(found.similarities, -np.sort(-cosines, 1)[:, :4], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosines, found.nearest, 1), found.similarities, atol=1e-5)


def test_only_the_most_similar_of_too_many_pairs_are_kept(monkeypatch, values):
    everything = neighbourhood(values, np.arange(90), -1.0, 0, CPU)
    monkeypatch.setattr(near_duplicates, "MOST_PAIRS", 10)
    few = neighbourhood(values, np.arange(90), -1.0, 0, CPU)
    assert len(everything.pairs) == 90 * 89 // 2
    assert few.pairs.tolist() == everything.pairs[:10].tolist()


def test_rows_without_direction_are_like_none():
    values = np.zeros((4, 3), np.float32)
    found = neighbourhood(values, np.arange(4), 0.5, 2, CPU)
    assert not len(found.pairs)
    assert (found.similarities == 0).all()


def test_near_duplicates_stay_on_one_side(tmp_path, values):
    path = write_features(tmp_path / "f.h5", values, np.arange(90) % 2, ("a", "b"))
    features, rows = featx.open_features(path), np.arange(90)
    layer = features.only_layer(None)
    alone, together = (kept_together(features, rows, near=near, layer=layer) for near in (None, 0.95))
    divided = {}
    for name, groups in (("alone", alone), ("together", together)):
        train, test = split_rows(features, rows, groups, featx.FitConfig(test=0.4, seed=1), multilabel=False)
        assert len(train) + len(test) == 90
        divided[name] = sum((place in train) != (place + 60 in train) for place in range(15))
    assert divided["alone"] > 0
    assert divided["together"] == 0
    report = featx.fit_svm(path, tmp_path / "h.safetensors", featx.FitConfig(test=0.4, seed=1, near_duplicates=0.95))
    assert report.train + report.test == 90
    checked = featx.verify_file(tmp_path / "h.safetensors", featx.VerifyConfig(source=str(path)))
    assert checked.passed
