"""`verify` passes what is right and finds what is wrong."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from conftest import write_photo
from corpus import write_corpus
from PIL import Image
from torchvision import transforms as T

from featx.commands.extract import extract_features
from featx.commands.inspect import inspect_file
from featx.commands.verify import verify_file
from featx.errors import FeatxError, FileFormatError, PlanMismatch, SourceError, VerificationFailed, WeightsMismatch
from featx.networks.build import construct
from featx.options.extraction import ExtractConfig, VerifyConfig
from featx.status import Status
from featx.store.open import open_features


def extract(source, out, layers="features.3,features.12,classifier.1,prob", **options):
    chosen = {"backbone": "squeezenet1_1", "weights": "random:0", "device": "cpu", "layers": layers, **options}
    extract_features(source, out, ExtractConfig(**chosen))
    return out


@pytest.mark.parametrize(
    "options",
    [{}, {"pool": "avg"}, {"pool": "max"}, {"pool": "flatten"}, {"pool": "spp:1,2,4"}, {"dtype": "float16"},
     {"precision": "bf16"}, {"squash": True}, {"crop": 160}, {"resize": 300, "crop": 200}, {"exif": True},
     {"mirror": True}, {"mirror": True, "squash": True}, {"plain": True}, {"decode": "fast"}, {"decode": "fast", "mirror": True},
     {"views": "corners", "aggregate": "max"}, {"views": "ten", "pool": "avg"}, {"views": "ten", "aggregate": "stack", "dtype": "float16", "pool": "avg"},
     {"fit": "pad", "pad_color": "mean", "grey": True}, {"mean": "0.1", "std": "0.3,0.2,0.1", "interpolation": "lanczos"}],
)  # fmt: skip
def test_what_extract_makes_is_right(photos, tmp_path, options):
    report = verify_file(extract(photos, tmp_path / "f.h5", **options), VerifyConfig(rows=4))
    assert report.passed
    assert [layer.layer for layer in report.layers] == ["features.3", "features.12", "classifier.1", "prob"]
    exact = options.keys().isdisjoint({"dtype", "precision", "decode"})
    assert all(layer.difference < (1e-5 if exact else 3e-2) for layer in report.layers)


def test_the_values_of_ten_views_are_those_of_ten_files(photos, tmp_path):
    """Every view cut out by torchvision and extracted as a file of its own."""
    (tmp_path / "cut").mkdir()
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            for view, square in enumerate(T.TenCrop(224)(T.Resize(256)(image.convert("RGB")))):
                square.save(tmp_path / "cut" / f"{number:02d}-{view}.png")
    alone = open_features(extract(tmp_path / "cut", tmp_path / "alone.h5", pool="avg", squash=True))
    options = {
        "mean": lambda values: values.mean(1),
        "max": lambda values: values.max(1),
        "stack": lambda values: values,
    }
    for how, expected in options.items():
        together = open_features(extract(photos, tmp_path / f"{how}.h5", pool="avg", views="ten", aggregate=how))
        for layer in alone:
            values = np.asarray(alone[layer]).reshape(len(paths), 10, -1)
            np.testing.assert_array_equal(
                together[layer].reshape(len(paths), *expected(values).shape[1:]), expected(values)
            )


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


def without_checksums(path):
    """The file as schema 1 had it: only a recomputation can tell."""
    with h5py.File(path, "r+") as file:
        del file["checksums"]
        file.attrs["schema"] = 1


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("how", ["one value", "two rows exchanged", "a row of another layer's scale", "NaN"])
def test_a_changed_row_is_found(photos, tmp_path, how, schema):
    out = extract(photos, tmp_path / "f.h5", "classifier.1", pool="avg")
    if schema == 1:
        without_checksums(out)
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
    found = r"checksums: \d of \d+ rows differ \(first: row \d" if schema == 2 else r"classifier\.1.*(DIFFERS|status)"
    with pytest.raises(VerificationFailed, match=rf"(?s)does not hold what it says.*{found}") as caught:
        verify_file(out)
    assert caught.value.exit_status == 5


def change(out, name, row, value):
    with h5py.File(out, "r+") as file:
        file[name][row] = value


@pytest.mark.parametrize(("name", "row", "value", "found"), [
    ("images/label", 3, -1, "names, labels, splits, provenance"),
    ("images/path", 3, b"a/99.jpg", "names, labels, splits, provenance"),
    ("images/sha256", 3, np.zeros(32, np.uint8), "status, hash"),
    ("images/decoder", 3, 1, "status, hash"),
    ("images/orientation", 3, 6, "status, hash"),
    ("images/status", 3, 5, "status, hash"),
    ("classes", 0, b"z", "names, labels, splits, provenance"),
])  # fmt: skip
def test_what_is_known_of_an_image_is_checked_for_every_row(photos, tmp_path, name, row, value, found):
    out = extract(photos, tmp_path / "f.h5", "classifier.1", pool="avg")
    change(out, name, row, value)
    with pytest.raises(VerificationFailed, match=found):
        verify_file(out, VerifyConfig(rows=1, seed=0))


@pytest.mark.parametrize(("name", "row", "value"), [
    ("images/label", 3, 0), ("images/path", 3, b"a/99.jpg"), ("classes", 0, b"z"), ("images/split", 2, 0),
    ("provenance", (), None),
])  # fmt: skip
def test_an_edited_file_is_refused_when_it_is_opened_and_inspect_says_so(photos, tmp_path, name, row, value):
    listed = tmp_path / "s.csv"
    names = sorted(p.relative_to(tmp_path) for p in photos.rglob("*.jpg"))[:6]
    rows = [f"{p},x{i % 2},{('train', 'test')[i % 2]}\n" for i, p in enumerate(names)]
    listed.write_text("path,label,split\n" + "".join(rows))
    out = extract(listed, tmp_path / "g.h5", "features.3", pool="avg")
    assert "CHANGED" not in str(inspect_file(out))
    with h5py.File(out, "r+") as file:
        if value is None:  # the same length: everything else stays where it is
            value = np.bytes_(file["provenance"][()].replace(b'"exif": false', b'"exif": true '))
        assert not np.array_equal(file[name][row], value)
        file[name][row] = value
    with pytest.raises(FileFormatError, match="was changed since it was made"):
        open_features(out)
    assert "CHANGED since it was made" in str(inspect_file(out))
    assert len(open_features(out, check=False)) == 6


@pytest.mark.parametrize(("key", "value"), [("precision", "bf16"), ("dtype", "float16"), ("pooling", "max")])
def test_a_tolerance_cannot_be_had_by_editing_the_file(photos, tmp_path, key, value):
    out = extract(photos, tmp_path / "f.h5", "classifier.1", pool="avg")
    with h5py.File(out, "r+") as file:
        made = json.loads(file["provenance"][()])
        made[key] = value
        del file["provenance"]
        file["provenance"] = np.bytes_(json.dumps(made))
    with pytest.raises(VerificationFailed, match="fingerprint"):
        verify_file(out, VerifyConfig(rows=1))


def test_attributes_are_compared_with_the_provenance(photos, tmp_path):
    out = extract(photos, tmp_path / "f.h5", "features.3", pool="avg")
    with h5py.File(out, "r+") as file:
        file["features/features.3"].attrs["node"] = np.bytes_("features.5")
    with pytest.raises(VerificationFailed, match="attributes"):
        verify_file(out, VerifyConfig(rows=1))


def test_labels_are_compared_with_the_source(photos, tmp_path):
    listed = tmp_path / "s.csv"
    names = sorted(p.relative_to(tmp_path) for p in photos.rglob("*.jpg"))[:6]
    listed.write_text("path,label\n" + "".join(f"{p},x{i % 2}\n" for i, p in enumerate(names)))
    out = extract(listed, tmp_path / "g.h5", "features.3", pool="avg")
    assert verify_file(out, VerifyConfig(rows=1)).passed
    listed.write_text("path,label\n" + "".join(f"{p},x{i % 3 % 2}\n" for i, p in enumerate(names)))
    with pytest.raises(VerificationFailed, match=r"labels of the source: \d differ"):
        verify_file(out, VerifyConfig(rows=1))


def test_every_row_can_be_recomputed_and_the_choice_differs_every_time(photos, tmp_path):
    out = extract(photos, tmp_path / "f.h5", "features.3", pool="avg")
    whole = verify_file(out, VerifyConfig(all=True))
    assert whole.rows == open_features(out).count(Status.DONE)
    assert len({verify_file(out, VerifyConfig(rows=1)).seed for _ in range(3)}) == 3
    with pytest.raises(VerificationFailed, match="DIFFERS"):
        verify_file(out, VerifyConfig(rows=1, tolerance=0.0))


@pytest.mark.slow
def test_random_flips_of_single_bytes_are_noticed(photos, tmp_path):
    """Every one that changes what a command reads; the rest lie in gaps and in HDF5's own unused bytes."""
    out = extract(photos, tmp_path / "f.h5", "features.3,classifier.1", pool="avg")
    whole = out.read_bytes()
    before = everything(out)
    generator, unnoticed = np.random.default_rng(0), []
    for place in generator.integers(0, len(whole), 500):
        flipped = bytearray(whole)
        flipped[place] ^= int(generator.integers(1, 256))
        out.write_bytes(flipped)
        try:
            verify_file(out, VerifyConfig(rows=1, seed=0))
        except FeatxError:
            continue
        if everything(out) != before:
            unnoticed.append(int(place))
    assert unnoticed == []


def everything(path):
    """All that commands read of a file."""
    features = open_features(path)
    names = ("images/path", "images/label", "images/split", "images/status", "images/sha256", "images/orientation",
             "images/decoder", "images/reason", "classes", "splits")  # fmt: skip
    arrays = [features.array(name).tobytes() for name in names] + [features[layer].tobytes() for layer in features]
    made = {**features.provenance, "source": {**features.provenance["source"], "files": None}}
    return arrays, json.dumps(made), features.fingerprint, repr(features.layers)


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
        verify_file(out, VerifyConfig(weights_file=str(tmp_path / "w.pth")))


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
