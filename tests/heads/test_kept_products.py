"""--keep-products: the next fit on the same images reads them, and is the same."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import clusters, write_features

import featx
from featx.errors import FileFormatError
from featx.heads.solver.linear_algebra import gram


@pytest.fixture
def features(tmp_path):
    values, labels = clusters(per_class=20, width=80, spread=3.0, seed=1)
    return write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"))


def fit(features, head, **options):
    featx.fit_svm(features, head, featx.FitConfig(test=0.2, **options))
    return featx.LinearHead.load(head)


@pytest.mark.parametrize("normalize", ["l2", "standard"])
def test_another_c_is_fitted_without_multiplying_again(features, tmp_path, monkeypatch, normalize):
    plain = fit(features, tmp_path / "plain.safetensors", c=3.0, normalize=normalize)
    kept = {"keep_products": str(tmp_path / "kept"), "normalize": normalize}
    fit(features, tmp_path / "auto.safetensors", **kept)
    (file,) = (tmp_path / "kept").glob("*.float32.safetensors")
    assert file.stat().st_size == pytest.approx(4 * 48**2, rel=0.1)

    def never(*_):
        raise AssertionError("multiplied again")

    real = gram.add_squares
    monkeypatch.setattr(gram, "add_squares", never)
    again = fit(features, tmp_path / "again.safetensors", c=3.0, **kept)
    np.testing.assert_array_equal(again.weights, plain.weights)
    np.testing.assert_array_equal(again.bias, plain.bias)
    for other in ({"seed": 1}, {"normalize": "none"}):  # other rows, other values: not these products
        with pytest.raises(AssertionError, match="multiplied again"):
            fit(features, tmp_path / "other.safetensors", c=3.0, **{**kept, **other})
    monkeypatch.setattr(gram, "add_squares", real)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(FileFormatError, match="is damaged; delete it"):
        fit(features, tmp_path / "broken.safetensors", c=3.0, **kept)


def test_where_nothing_is_kept_the_report_says_so(tmp_path):
    values, labels = clusters(per_class=60, width=12, spread=3.0, seed=1)  # many images of few values
    path = write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"))
    report = featx.fit_svm(path, None, featx.FitConfig(c=1.0, keep_products=str(tmp_path / "kept")))
    assert any("--keep-products has kept nothing" in note for note in report.notes)


def test_a_folder_that_cannot_be_made_is_one_line(features, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(featx.FeatxError, match="file"):
        fit(features, tmp_path / "h.safetensors", c=1.0, keep_products=str(tmp_path / "file" / "kept"))
