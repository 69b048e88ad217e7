"""`inspect` and `check` see what is there."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest
from conftest import clusters, write_features, write_photo
from corpus import BAD, GOOD, write_corpus
from PIL import Image

from featx.commands.check import check_source
from featx.commands.inspect import inspect_file, layer_health
from featx.store.open import open_features


def test_health_is_what_numpy_says_of_the_whole_array(tmp_path, monkeypatch):
    monkeypatch.setattr("featx.commands.inspect.BLOCK_BYTES", 500)  # many small blocks
    values, labels = clusters(width=9)
    values[:, 2], values[:, 5] = 0.0, 4.5
    values[13, 1] = np.nan
    path = write_features(tmp_path / "f.h5", values, labels, ("a", "b", "c"), failed=(7, 8))
    health = inspect_file(path).layers[0]
    good = np.delete(values, [7, 8, 13], axis=0)
    assert (health.zero_columns, health.constant_columns, health.nan_rows) == (1, 1, 1)
    assert (health.least, health.greatest) == (good.min(), good.max())
    assert health.mean == pytest.approx(good.mean(), rel=1e-6)
    assert health.zeros == pytest.approx((good == 0).mean())


def test_a_layer_without_a_good_row_has_no_numbers(tmp_path):
    path = write_features(tmp_path / "f.h5", np.ones((3, 4)), [0, 1, 0], ("a", "b"), failed=(0, 1, 2))
    features = open_features(path)
    assert np.isnan(layer_health(features, "fc7", np.array([], np.intp)).mean)
    assert "3 damaged" in str(inspect_file(path))


def test_the_report_names_failures_and_provenance(tmp_path, featx):
    path = write_features(tmp_path / "f.h5", *clusters(), ("a", "b", "c"), failed=(5,))
    shown = featx("inspect", path)
    assert shown.status == 0
    for part in (
        "complete; 120 images, 119 done",
        "row 5: 000005.jpg: broken",
        "alexnet",
        "random:0",
        "featx extract",
    ):
        assert part in shown.out, part
    assert featx("inspect", path, "--json").json["failures"][0]["row"] == 5


def test_check_counts_the_corpus_as_it_was_written(tmp_path):
    write_corpus(tmp_path / "s")
    report = check_source(tmp_path / "s")
    assert (report.images, len(report.bad)) == (len(GOOD) + len(BAD), len(BAD))
    assert {bad.path for bad in report.bad} == {name.decode() for name, _, _ in BAD}
    assert report.turned == 2
    assert report.formats["JPEG"] == 9
    assert report.modes["CMYK"] == 2
    assert report.smallest == (1, 1)
    assert report.bytes == report.images * 4096 * 4


def test_check_finds_one_image_under_two_labels_and_on_both_sides_of_a_split(tmp_path):
    for index, path in enumerate(["train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg"]):
        write_photo(tmp_path / "s" / path, index)
    shutil.copy(tmp_path / "s/train/cat/1.jpg", tmp_path / "s/train/dog/copy.jpg")
    shutil.copy(tmp_path / "s/train/dog/2.jpg", tmp_path / "s/test/dog.jpg")
    (tmp_path / "s/test/dog").mkdir()
    (tmp_path / "s/test/dog.jpg").rename(tmp_path / "s/test/dog/copy.jpg")
    report = check_source(tmp_path / "s")
    one, two = ["train/cat/1.jpg", "train/dog/copy.jpg"], ["test/dog/copy.jpg", "train/dog/2.jpg"]
    assert sorted(report.duplicates) == [two, one]
    assert report.two_labels == [one]
    assert report.two_splits == [two]
    assert "1 of them under different labels:" in str(report)


def test_check_reads_zips_and_says_when_there_is_one_class_only(tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "cats/a.png")
        archive.write(tmp_path / "a.png", "cats/b/b.png")
    report = check_source(tmp_path / "s.zip")
    assert (report.kind, report.images, report.duplicates) == ("zip", 2, [["cats/a.png", "cats/b/b.png"]])


def test_check_names_a_few_classes_and_those_that_look_like_a_mistake(tmp_path):
    lines = ["path,label"]
    for index, label in enumerate(["cat", "Cat", " cat", "dog"]):
        write_photo(tmp_path / f"{index}.jpg", index)
        lines.append(f"{index}.jpg,{label}")
    (tmp_path / "s.csv").write_text("\n".join(lines) + "\n")
    text = str(check_source(tmp_path / "s.csv"))
    assert "3 classes of 1 to 2 images: Cat, cat, dog" in text
    assert "classes that differ in case or spaces only: 'Cat', 'cat'" in text


def test_estimates_grow_with_the_layers(tmp_path, featx):
    write_photo(tmp_path / "s/a/1.jpg", 1)
    small = featx("check", tmp_path / "s", "-l", "fc8", "--json").json
    large = featx("check", tmp_path / "s", "-l", "conv1-fc8", "--json").json
    assert (small["bytes"], large["bytes"]) == (4000, 582_504 * 4)
    assert "one class only" in featx("check", tmp_path / "s").out
