"""--reduce: layers projected onto principal components, or at random, before they are written."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from conftest import write_photo
from sklearn.decomposition import PCA
from sklearn.random_projection import SparseRandomProjection

import featx
from featx.errors import FeaturesMismatch, FeatxError, FileFormatError, PlanMismatch, TooManyBadImages, UsageError
from featx.extraction.reduction import fit

NET = "alexnet-mini"
N = 5


def config(reduce=None, layers="conv5,fc7", **options):
    return featx.ExtractConfig(
        backbone=NET, layers=layers, pool="avg", device="cpu", reduce=reduce, workers=2, **options
    )


def photos_in(folder, numbers):
    for number in numbers:
        write_photo(folder / "ab"[number % 2] / f"{number:02d}.jpg", number)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photos_in(tmp_path_factory.mktemp("photos"), range(40))


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "f.h5"
    featx.extract_features(photos, path, config())
    return featx.open_features(path)


@pytest.fixture(scope="module")
def reduced(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("reduced") / "f.h5"
    featx.extract_features(photos, path, config(f"pca:{N}"))
    return featx.open_features(path)


def test_principal_components_are_scikit_learns(whole, reduced):
    for layer in ("conv5", "fc7"):
        expected = PCA(N, svd_solver="full").fit(whole[layer].astype(np.float64))
        rows = expected.transform(whole[layer].astype(np.float64))
        assert reduced[layer].shape == (40, N)
        signs = np.sign((rows * reduced[layer]).sum(0))
        np.testing.assert_allclose(reduced[layer] * signs, rows, atol=1e-5 * np.abs(rows).max())
        kept = reduced.array(f"reduction/{layer}/explained_variance_ratio")
        np.testing.assert_allclose(kept, expected.explained_variance_ratio_, rtol=1e-4)
    made = reduced.provenance["reduction"]
    assert (made["method"], made["components"], made["sample"]) == ("pca", N, 40)
    assert featx.verify_file(reduced.path, featx.VerifyConfig(all=True)).passed


def test_what_does_not_fit_into_memory_at_once_is_fitted_in_parts(photos, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "_CHUNK_BYTES", 8 * 384 * 12)
    featx.extract_features(photos, tmp_path / "f.h5", config("pca:12", layers="fc7"))
    made = featx.open_features(tmp_path / "f.h5")
    kept = made.array("reduction/fc7/explained_variance_ratio").sum()
    best = PCA(12, svd_solver="full").fit(whole["fc7"].astype(np.float64)).explained_variance_ratio_.sum()
    components = made.array("reduction/fc7/components").astype(np.float64)
    np.testing.assert_allclose(components @ components.T, np.eye(12), atol=1e-5)
    centred = whole["fc7"] - whole["fc7"].mean(0)
    found = ((centred @ components.T) ** 2).sum() / (centred**2).sum()
    assert 0.95 * best < found < best
    assert 0.95 * best < kept < 1.05 * best


def test_random_projections_are_scikit_learns_of_that_seed(photos, whole, tmp_path):
    featx.extract_features(photos, tmp_path / "f.h5", config("srp:9:3"))
    made = featx.open_features(tmp_path / "f.h5")
    for layer in ("conv5", "fc7"):
        expected = SparseRandomProjection(9, random_state=3).fit_transform(whole[layer].astype(np.float64))
        np.testing.assert_allclose(made[layer], expected, atol=1e-5 * np.abs(expected).max())
    assert featx.verify_file(made.path, featx.VerifyConfig(all=True)).passed
    featx.extract_features(photos, tmp_path / "g.h5", config("srp:9:4"))
    assert np.abs(featx.open_features(tmp_path / "g.h5")["fc7"] - made["fc7"]).max() > 0.01


def test_other_images_get_the_projection_of_a_file_and_of_a_head(reduced, tmp_path):
    others = photos_in(tmp_path / "others", range(50, 56))
    featx.extract_features(others, tmp_path / "whole.h5", config())
    plain = featx.open_features(tmp_path / "whole.h5")
    featx.extract_features(others, tmp_path / "a.h5", config(str(reduced.path)))
    found = featx.open_features(tmp_path / "a.h5")
    for layer in ("conv5", "fc7"):
        mean, components = (reduced.array(f"reduction/{layer}/{name}") for name in ("mean", "components"))
        expected = (plain[layer].astype(np.float64) - mean) @ components.T
        np.testing.assert_allclose(found[layer], expected, atol=1e-5 * np.abs(expected).max())
    featx.fit_svm(reduced.path, tmp_path / "h.safetensors", featx.FitConfig(layer="fc7", c=1.0))
    featx.extract_features(others, tmp_path / "b.h5", config(str(tmp_path / "h.safetensors"), layers="fc7"))
    np.testing.assert_array_equal(featx.open_features(tmp_path / "b.h5")["fc7"], found["fc7"])
    with featx.Extractor(NET, "fc7", device="cpu", reduce=str(reduced.path)) as extractor:
        images = [others / path for path in found.paths]
        np.testing.assert_array_equal(extractor(images)["fc7"], found["fc7"])
    with featx.Predictor(tmp_path / "h.safetensors", device="cpu") as predictor:
        scores = predictor.scores(images)
    np.testing.assert_allclose(
        scores, featx.LinearHead.load(tmp_path / "h.safetensors").scores(found["fc7"]), rtol=1e-12
    )
    with pytest.raises(FeaturesMismatch, match="--reduce"):
        featx.evaluate_head(tmp_path / "h.safetensors", tmp_path / "whole.h5")


def test_an_interrupted_run_goes_on_with_the_projection_that_it_has(tmp_path, monkeypatch):
    folder, out = photos_in(tmp_path / "photos", range(20)), tmp_path / "f.h5"
    (folder / "a" / "zz.jpg").write_bytes(b"no image")
    asked = config(f"pca:{N}", layers="fc7")
    with pytest.raises(TooManyBadImages):
        featx.extract_features(folder, out, asked)
    monkeypatch.setattr(fit, "_principal_components", None)  # not to be called again
    (folder / "a" / "zz.jpg").unlink()
    write_photo(folder / "a" / "zz.jpg", 99)
    featx.extract_features(folder, out, config(f"pca:{N}", layers="fc7", retry_failed=True))
    assert featx.verify_file(out, featx.VerifyConfig(all=True)).passed
    # a file that grows keeps it, and so do files that are joined
    photos_in(folder, range(20, 26))
    featx.extract_features(folder, out, config(f"pca:{N}", layers="fc7", update=True))
    made = featx.open_features(out)
    assert (len(made), made.provenance["reduction"]["sample"]) == (27, 20)
    other = photos_in(tmp_path / "other", range(30, 33))
    featx.extract_features(other, tmp_path / "g.h5", config(str(out), layers="fc7"))
    featx.concat_features([out, tmp_path / "g.h5"], tmp_path / "all.h5")
    assert featx.verify_file(tmp_path / "all.h5", featx.VerifyConfig(all=True)).passed
    # and it is what the file that was named has now, not what it had
    monkeypatch.undo()
    featx.extract_features(folder, out, config("pca:4", layers="fc7", overwrite=True))
    with pytest.raises(PlanMismatch, match="reduction"):
        featx.extract_features(other, tmp_path / "g.h5", config(str(out), layers="fc7"))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pca:400", "makes nothing smaller: fc7 has 384 values"),
        ("pca:100", "needs more than 100 images; there are 40"),
        ("pca", "it can be pca:N, srp:N, or a features file or head"),
        ("srp:0", "it can be pca:N, srp:N, or a features file or head"),
        ("none.h5", "it can be pca:N, srp:N, or a features file or head"),
    ],
)
def test_what_cannot_be_done_is_refused(photos, tmp_path, how, said):
    with pytest.raises(UsageError, match=said):
        featx.extract_features(photos, tmp_path / "f.h5", config(how, layers="fc7"))
    assert [*tmp_path.iterdir()] == []


def test_files_that_keep_no_projection_or_another_layers_are_refused(photos, whole, reduced, tmp_path):
    with pytest.raises(UsageError, match="made without --reduce"):
        featx.extract_features(photos, tmp_path / "f.h5", config(str(whole.path)))
    with pytest.raises(UsageError, match=r"has a projection of conv5, fc7, not of fc6"):
        featx.extract_features(photos, tmp_path / "f.h5", config(str(reduced.path), layers="fc6"))
    with pytest.raises(UsageError, match="fitted by one process"):
        featx.extract_features(photos, tmp_path / "f.h5", config(f"pca:{N}", shard="0/2"))
    with pytest.raises(UsageError, match="fitted on images by featx extract"):
        featx.Extractor(NET, "fc7", reduce="pca:3").load()


def test_parts_of_a_job_share_a_projection(reduced, photos, tmp_path):
    for part in ("0/2", "1/2"):
        featx.extract_features(photos, tmp_path / "f.h5", config(str(reduced.path), shard=part, batch_size=8))
    parts = sorted(tmp_path.glob("f.*.h5"))
    featx.merge_shards(parts, tmp_path / "f.h5")
    # in blocks of another size, so not to the last bit
    np.testing.assert_allclose(featx.open_features(tmp_path / "f.h5")["fc7"], reduced["fc7"], atol=1e-5)
    assert featx.verify_file(tmp_path / "f.h5").passed


def test_a_projection_that_was_changed_is_found(reduced, tmp_path):
    path = tmp_path / "f.h5"
    path.write_bytes(reduced.path.read_bytes())
    with h5py.File(path, "r+") as file:
        file["reduction/fc7/components"][0, 0] += 1
    with pytest.raises(FeatxError, match="its projection is not the one that its provenance names"):
        featx.verify_file(path)
    head = tmp_path / "h.safetensors"
    featx.fit_svm(reduced.path, head, featx.FitConfig(layer="fc7", c=1.0))
    content = bytearray(head.read_bytes())
    place = content.find(reduced.array("reduction/fc7/components").tobytes()[:64])
    content[place] ^= 1
    head.write_bytes(content)
    with pytest.raises(FileFormatError):
        featx.Predictor(head, device="cpu")


def test_a_projection_is_for_features_made_in_the_same_way(reduced, photos, tmp_path):
    for options in ({"weights": "random:3"}, {"mirror": True}, {"pool": "max"}):
        asked = {"backbone": NET, "layers": "conv5", "pool": "avg", "device": "cpu", "reduce": str(reduced.path)}
        with pytest.raises(UsageError, match="its projection was fitted on features made with another"):
            featx.extract_features(photos, tmp_path / "f.h5", featx.ExtractConfig(**{**asked, **options}))


def test_components_are_no_units_and_layers_are_not_added(reduced, photos, tmp_path):
    from featx.commands.show.top import show_top

    with pytest.raises(UsageError, match="its values are no units"):
        show_top(reduced.path, tmp_path / "top", featx.TopConfig(layers="fc7", units="0"))
    (tmp_path / "f.h5").write_bytes(reduced.path.read_bytes())
    with pytest.raises(PlanMismatch, match="layers cannot be added"):
        featx.extract_features(photos, tmp_path / "f.h5", config(f"pca:{N}", layers="conv5,fc6,fc7", update=True))
