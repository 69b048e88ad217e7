"""Several features files opened as one are their rows behind each other."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from conftest import clusters, write_features

import featx
from featx.errors import PlanMismatch


def test_rows_labels_and_splits_follow_each_other(tmp_path):
    values, labels = clusters()
    one = write_features(
        tmp_path / "1.h5", values, labels, ("b", "c", "x"), split_of=[0] * 120, splits=("test",), failed=(3,)
    )
    two = write_features(
        tmp_path / "2.h5", values + 1, labels, ("a", "b", "c"), split_of=[1] * 120, splits=("test", "train")
    )
    both = featx.open_features(one, two)
    assert (len(both), list(both), both.complete) == (240, ["fc7"], True)
    assert both.classes == ["a", "b", "c", "x"]
    assert both.splits == ["test", "train"]
    names = np.array(both.classes)
    assert (
        names[both.labels].tolist()
        == np.concatenate([np.array(["b", "c", "x"])[labels], np.array(["a", "b", "c"])[labels]]).tolist()
    )
    assert both.split_of.tolist() == [0] * 120 + [1] * 120
    expected = np.concatenate([values, values + 1])
    good = np.arange(240) != 3
    assert np.array_equal(both["fc7"][good], expected[good])
    X, y = both.xy("fc7")
    assert np.array_equal(X, expected[good])
    assert np.array_equal(y, both.labels[good])
    assert both.xy(split="train")[0].shape == (120, 12)
    assert [failure.row for failure in both.failures()] == [3]
    again = pickle.loads(pickle.dumps(both))
    assert again.digest == both.digest
    assert both.digest != featx.open_features(two, one).digest


def test_files_of_another_recipe_are_refused(tmp_path):
    values, labels = clusters()
    one = write_features(tmp_path / "1.h5", values, labels, ("a", "b", "c"))
    two = write_features(tmp_path / "2.h5", values, labels, ("a", "b", "c"), layer="fc6")
    with pytest.raises(
        PlanMismatch, match=r"1\.h5 and .*2\.h5 were made with different settings: layers\.fc6 none in one"
    ):
        featx.open_features(one, two)
