"""A features file in other programs' hands: torch's DataLoader, pickle, scikit-learn."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from conftest import clusters, write_features
from sklearn.linear_model import LogisticRegression
from test_schema import fill, plan
from torch.utils.data import DataLoader

from featx.errors import FileFormatError, LabelError, UnknownLayer
from featx.store.open import open_features
from featx.store.schema import partial_path
from featx.store.writer import FeatureWriter


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than a small machine has cores
def test_a_data_loader_gets_every_usable_row_once(tmp_path, workers):
    values = fill(tmp_path / "f.h5", plan(20))
    features = open_features(tmp_path / "f.h5")
    loader = DataLoader(features.dataset("fc7"), batch_size=3, num_workers=workers)
    batches = list(loader)
    rows = features.usable()
    np.testing.assert_array_equal(np.concatenate([x.numpy() for x, _ in batches]), values["fc7"][rows])
    np.testing.assert_array_equal(np.concatenate([y.numpy() for _, y in batches]), features.labels[rows])


def test_a_pickled_file_is_its_path_and_not_its_content(tmp_path):
    fill(tmp_path / "f.h5", plan(1000))
    features = open_features(tmp_path / "f.h5")
    features["fc7"].sum()
    packed = pickle.dumps(features)
    assert len(packed) < 500
    np.testing.assert_array_equal(pickle.loads(packed)["fc7"], features["fc7"])  # our own


def test_x_and_y_go_straight_into_scikit_learn(tmp_path):
    fill(tmp_path / "f.h5", plan(30))
    X, y = open_features(tmp_path / "f.h5").xy("fc7")
    LogisticRegression(max_iter=10_000).fit(X / X.max(), y)


def test_x_is_the_map_itself_when_every_row_is_usable(tmp_path):
    whole = plan(3, classes=())
    whole = type(whole)(whole.paths, [0, 0, 0], ("a",), whole.split_of, (), whole.layers, whole.provenance)
    fill(tmp_path / "f.h5", whole)
    features = open_features(tmp_path / "f.h5")
    X, _ = features.xy("fc7")
    assert np.shares_memory(X, features._map("features/fc7")) or isinstance(X.base, np.memmap)


def test_what_the_file_does_not_hold_is_said_with_what_it_holds(tmp_path):
    fill(tmp_path / "f.h5", plan())
    features = open_features(tmp_path / "f.h5")
    with pytest.raises(UnknownLayer, match=r"no layer 'fc6'; it holds conv5:pre, fc7|it holds fc7, conv5:pre"):
        features["fc6"]
    with pytest.raises(UnknownLayer, match="choose one with -l"):
        features.xy()
    with pytest.raises(LabelError, match="no split 'test'; its splits: none"):
        features.usable("test")


def test_an_unfinished_file_is_not_opened_by_accident(tmp_path):
    FeatureWriter.open(tmp_path / "f.h5", plan()).close()
    with pytest.raises(FileFormatError, match=r"f\.h5\.partial is there: run the same extract command"):
        open_features(tmp_path / "f.h5")
    with pytest.raises(FileFormatError, match="not finished: 5 of 5"):
        open_features(partial_path(tmp_path / "f.h5"))
    assert len(open_features(partial_path(tmp_path / "f.h5"), partial=True)) == 5


def test_a_file_that_gets_another_ones_name_is_not_mixed_with_it(tmp_path):
    fill(tmp_path / "f.h5", plan(20))
    fill(tmp_path / "g.h5", plan(20, classes=("x", "y", "z")))
    features = open_features(tmp_path / "f.h5")
    before = features["fc7"]
    kept = before.copy()
    os.replace(tmp_path / "g.h5", tmp_path / "f.h5")
    for read in (lambda: features["fc7"], lambda: features.raw_paths, lambda: features.xy("fc7")):
        with pytest.raises(FileFormatError, match="was replaced or changed since it was opened; open it again"):
            read()
    np.testing.assert_array_equal(before, kept)
    assert open_features(tmp_path / "f.h5").classes == ["x", "y", "z"]
    (tmp_path / "f.h5").unlink()
    with pytest.raises(FileFormatError, match="was replaced"):
        features.paths  # noqa: B018  # read at its first use


def test_a_pickled_file_is_the_same_file_where_it_is_opened_again(tmp_path):
    values, labels = clusters(per_class=4)
    for seed, name in enumerate(("f.h5", "g.h5")):
        hashes = np.random.default_rng(seed).integers(1, 256, (len(values), 32), np.uint8)
        write_features(tmp_path / name, values + seed, labels, ("a", "b", "c"), sha256=hashes)
    held = pickle.dumps(open_features(tmp_path / "f.h5"))
    np.testing.assert_array_equal(pickle.loads(held)["fc7"], values)
    os.replace(tmp_path / "g.h5", tmp_path / "f.h5")
    with pytest.raises(FileFormatError, match="was replaced or changed since it was pickled"):
        pickle.loads(held)
