"""`verify` passes what is right and finds what is wrong."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from conftest import write_photo
from corpus import write_corpus
from PIL import Image

from featx.commands.extract import extract_features
from featx.commands.verify import verify_file
from featx.errors import PlanMismatch, SourceError, VerificationFailed, WeightsMismatch
from featx.networks.build import construct
from featx.options.extraction import ExtractConfig, VerifyConfig
from featx.store.open import open_features


def extract(source, out, layers="features.3,features.12,classifier.1,prob", **options):
    chosen = {"backbone": "squeezenet1_1", "weights": "random:0", "device": "cpu", "layers": layers, **options}
    extract_features(source, out, ExtractConfig(**chosen))
    return out


@pytest.mark.parametrize(
    "options",
    [{}, {"pool": "avg"}, {"pool": "max"}, {"pool": "flatten"}, {"pool": "spp:1,2,4"}, {"dtype": "float16"},
     {"precision": "bf16"}, {"squash": True}, {"crop": 160}, {"resize": 300, "crop": 200}, {"exif": True},
     {"mirror": True}, {"mirror": True, "squash": True}, {"plain": True}, {"decode": "fast"}, {"decode": "fast", "mirror": True}],
)  # fmt: skip
def test_what_extract_makes_is_right(photos, tmp_path, options):
    report = verify_file(extract(photos, tmp_path / "f.h5", **options), VerifyConfig(rows=4))
    assert report.passed
    assert [layer.layer for layer in report.layers] == ["features.3", "features.12", "classifier.1", "prob"]
    exact = options.keys().isdisjoint({"dtype", "precision", "decode"})
    assert all(layer.difference < (1e-5 if exact else 3e-2) for layer in report.layers)


def test_mirrored_features_are_those_of_mirrored_files(tmp_path):
    for number in range(3):
        write_photo(tmp_path / "photos" / f"{number}.jpg", number)
        (tmp_path / "turned").mkdir(exist_ok=True)
        with Image.open(tmp_path / "photos" / f"{number}.jpg") as photo:
            turned = np.ascontiguousarray(np.asarray(photo.resize((256, 256)))[:, ::-1])
            photo.resize((256, 256)).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.jpg").unlink()
        Image.fromarray(turned).save(tmp_path / "turned" / f"{number}.png")
    mirrored = open_features(extract(tmp_path / "photos", tmp_path / "m.h5", mirror=True))
    expected = open_features(extract(tmp_path / "turned", tmp_path / "t.h5"))
    for layer in expected:
        np.testing.assert_array_equal(mirrored[layer], expected[layer])


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [("alexnet", "conv1,conv5:pre,fc6:pre,fc7,prob"), ("resnet18", "layer1.0.relu_1,layer2.0.add,bn1,layer4"),
     ("googlenet", "inception3a,inception4b.branch2.1.relu")],
)  # fmt: skip
def test_every_sort_of_node_is_recomputed(photos, tmp_path, backbone, layers):
    assert verify_file(extract(photos, tmp_path / "f.h5", layers, backbone=backbone), VerifyConfig(rows=2)).passed


def test_the_whole_corpus_of_odd_images_verifies(tmp_path):
    write_corpus(tmp_path / "corpus")
    out = extract(tmp_path / "corpus", tmp_path / "f.h5", "features.3", max_bad=1.0, exif=True, pool="avg")
    report = verify_file(out, VerifyConfig(rows=1000))
    assert report.rows >= 45
    assert report.passed


@pytest.mark.parametrize("how", ["one value", "two rows exchanged", "a row of another layer's scale", "NaN"])
def test_a_changed_row_is_found(photos, tmp_path, how):
    out = extract(photos, tmp_path / "f.h5", "classifier.1", pool="avg")
    with h5py.File(out, "r+") as file:
        rows = file["features/classifier.1"]
        if how == "one value":
            rows[5, 17] += 1e-3 * np.abs(rows[:]).max()
        elif how == "two rows exchanged":
            rows[2], rows[9] = rows[9], rows[2]
        elif how == "NaN":
            rows[4, 4] = np.nan
        else:
            rows[3] *= 1.001
    with pytest.raises(
        VerificationFailed, match=r"(?s)does not hold what it says.*classifier\.1 .*DIFFERS"
    ) as caught:
        verify_file(out)
    assert caught.value.exit_status == 5


def test_an_image_changed_since_is_named(photos, tmp_path):
    out = extract(photos, tmp_path / "f.h5", "classifier.1")
    write_photo(photos / "b" / "04.jpg", 1234)
    with pytest.raises(PlanMismatch, match=r"b/04\.jpg has changed since"):
        verify_file(out)


def test_images_that_moved_are_asked_for_and_found(photos, tmp_path):
    out = extract(photos, tmp_path / "f.h5", "classifier.1")
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="say where with --source"):
        verify_file(out)
    assert verify_file(out, VerifyConfig(rows=2, source=str(tmp_path / "elsewhere"))).passed


def test_other_weights_than_the_files_are_refused(photos, tmp_path):
    torch.save(construct("squeezenet1_1", seed=0).state_dict(), tmp_path / "w.pth")
    out = extract(photos, tmp_path / "f.h5", "classifier.1", weights=str(tmp_path / "w.pth"))
    assert verify_file(out, VerifyConfig(rows=2)).passed
    torch.save(construct("squeezenet1_1", seed=1).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch, match="was made with weights of sha256"):
        verify_file(out)
    torch.save(construct("squeezenet1_1", seed=0).state_dict(), tmp_path / "moved.pth")
    with pytest.raises(WeightsMismatch):  # the same tensors in another file: another hash, and not vouched for
        verify_file(out, VerifyConfig(weights=str(tmp_path / "w.pth")))


def test_rows_decoded_the_fast_way_differ_and_are_held_to_a_bound_of_their_own(tmp_path):
    for number in range(2):
        path = tmp_path / "photos" / f"{number}.jpg"
        write_photo(path, number, (500, 375))
        with Image.open(path) as photo:
            grain = np.random.default_rng(number).normal(0, 12, (375, 500, 3))
            Image.fromarray((np.asarray(photo) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=92)
    extract(tmp_path / "photos", tmp_path / "f.h5", decode="fast")
    report = verify_file(tmp_path / "f.h5", VerifyConfig(rows=2))
    assert {check.decoder for check in report.layers} == {"FAST"}
    assert max(check.difference for check in report.layers) > 1e-5
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["images/decoder"][:] = 0  # as if Pillow had made them
    with pytest.raises(VerificationFailed):
        verify_file(tmp_path / "f.h5", VerifyConfig(rows=2))
