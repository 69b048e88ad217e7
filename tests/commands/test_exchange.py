"""Features for other programs, several files as one, and files that grow."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.io
from conftest import write_photo
from PIL import Image, ImageOps

import featx
from featx.cli import main
from featx.errors import LabelError, PlanMismatch, UnknownLayer, UsageError
from featx.runtime.progress import Reporter
from featx.status import Status
from featx.store.open import JoinedFeatures

NET = "alexnet-mini"


def config(layers="conv5,fc6:pre,fc7", **options):
    return featx.ExtractConfig(backbone=NET, layers=layers, device="cpu", **options)


def photos_in(folder, numbers, size=(80, 70)):
    for number in numbers:
        write_photo(folder / "ab"[number % 2] / f"{number:02d}.jpg", number, size)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Features of 11 photos, one of them broken, in three layers."""
    folder = photos_in(tmp_path_factory.mktemp("photos"), range(10))
    (folder / "b" / "11.jpg").write_bytes(b"no image")
    path = tmp_path_factory.mktemp("features") / "f.h5"
    featx.extract_features(folder, path, config(pool="avg", max_bad=1.0))
    return featx.open_features(path)


# --- export


def test_npz_holds_what_the_file_holds(made, tmp_path):
    featx.export_features(made.path, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as found:
        for layer in made:
            np.testing.assert_array_equal(found[layer], made[layer])
            assert found[layer].dtype == made[layer].dtype
        assert found["path"].tolist() == made.paths
        assert [found["classes"][label] for label in found["label"]] == [made.classes[label] for label in made.labels]
        assert json.loads(str(found["provenance"])) == made.provenance
        np.testing.assert_array_equal(found["status"], made.status)


def test_npy_is_the_array_and_a_table_of_its_rows(made, tmp_path):
    report = featx.export_features(made.path, tmp_path / "x.npy", featx.ExportConfig(layers="fc7", done=True))
    done = made.status == Status.DONE
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), made["fc7"][done])
    rows = list(csv.DictReader((tmp_path / "x.rows.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == [path for path, good in zip(made.paths, done, strict=True) if good]
    assert report.images == 10


def test_matlab_reads_the_layers_by_names_it_can_have(made, tmp_path):
    featx.export_features(made.path, tmp_path / "x.mat")
    found = scipy.io.loadmat(tmp_path / "x.mat", simplify_cells=True)
    np.testing.assert_array_equal(found["fc6_pre"], made["fc6:pre"])
    assert list(found["path"]) == made.paths
    assert [found["classes"][label - 1] for label in found["label"]] == [made.classes[label] for label in made.labels]
    assert list(found["layers"]) == list(made)


def test_csv_and_parquet_are_tables_with_every_value(made, tmp_path):
    featx.export_features(made.path, tmp_path / "x.csv", featx.ExportConfig(layers="fc7"))
    rows = list(csv.reader((tmp_path / "x.csv").read_text().splitlines()))
    assert rows[0][:5] == ["path", "label", "split", "status", "fc7_0"]
    np.testing.assert_array_equal(np.array([row[4:] for row in rows[1:]], np.float32), made["fc7"])  # to the last bit
    featx.export_features(made.path, tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["path"].to_pylist() == made.paths
    assert table["split"].to_pylist() == [None] * len(made)
    for layer in made:
        values = np.array(table[layer].combine_chunks().flatten().to_numpy(zero_copy_only=False))
        np.testing.assert_array_equal(values.reshape(made[layer].shape), made[layer])
    assert [bytes(value) for value in table["sha256"].to_pylist()] == [row.tobytes() for row in made.sha256]
    assert json.loads(table.schema.metadata[b"featx"])["shapes"]["conv5"] == list(made.layers["conv5"].shape)


def test_more_rows_than_are_held_at_once_are_all_there(made, tmp_path, monkeypatch):
    monkeypatch.setattr("featx.store.formats._ROWS_AT_ONCE", 3)
    for ending in (".npz", ".parquet", ".mat"):
        featx.export_features(made.path, tmp_path / f"x{ending}")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["conv5"], made["conv5"])
    found = pq.read_table(tmp_path / "x.parquet")
    assert found["path"].to_pylist() == made.paths
    np.testing.assert_array_equal(np.array(found["fc7"].to_pylist(), np.float32), made["fc7"])
    np.testing.assert_array_equal(scipy.io.loadmat(tmp_path / "x.mat")["conv5"], made["conv5"])


def test_the_projector_gets_vectors_names_and_a_sheet(made, tmp_path):
    report = featx.export_features(made.path, tmp_path / "x.tsv", featx.ExportConfig(layers="fc7"))
    good = made.status == Status.DONE
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "x.tsv", delimiter="\t", dtype=np.float32), made["fc7"][good])
    lines = (tmp_path / "x.metadata.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["path", "label", "split", "status"]
    assert len(lines) == 11
    with Image.open(tmp_path / "x.sprite.png") as sheet:
        assert sheet.size == (4 * 32, 3 * 32)
        tiles = np.asarray(sheet).reshape(3, 32, 4, 32, 3).mean((1, 3)).reshape(12, 3)
    paths = [path for path, done in zip(made.paths, good, strict=True) if done]
    assert [line.split("\t")[0] for line in lines[1:]] == paths
    for path, tile in zip(paths, tiles, strict=False):
        with Image.open(f"{made.provenance['source']['path']}/{path}") as photo:
            middle = ImageOps.fit(photo, (32, 32))
        assert np.abs(np.asarray(middle).mean((0, 1)) - tile).max() < 12
    assert (tiles[10:] == 255).all()
    assert len(report.files) == 3


def test_names_that_are_no_utf_8_are_exported_too(tmp_path):
    for number in range(4):
        folder = os.fsencode(tmp_path) + b"/photos/" + (b"caf\xe9", b"plain")[number % 2]
        os.makedirs(folder, exist_ok=True)
        write_photo(tmp_path / "one.jpg", number, (70, 70))
        os.rename(tmp_path / "one.jpg", folder + b"/p\xff%d.jpg" % number)
    featx.extract_features(tmp_path / "photos", tmp_path / "f.h5", config("fc7"))
    for ending in ("npz", "mat", "parquet", "csv", "npy", "tsv"):
        featx.export_features(tmp_path / "f.h5", tmp_path / f"x-{ending}.{ending}")
    escaped = ["caf\\xe9/p\\xff0.jpg", "caf\\xe9/p\\xff2.jpg", "plain/p\\xff1.jpg", "plain/p\\xff3.jpg"]
    with np.load(tmp_path / "x-npz.npz") as found:
        assert (found["path"].tolist(), found["classes"].tolist()) == (escaped, ["caf\\xe9", "plain"])
    found = pq.read_table(tmp_path / "x-parquet.parquet").to_pydict()
    assert (found["path"], found["label"][0]) == (escaped, "caf\\xe9")
    for table in ("x-csv.csv", "x-npy.rows.csv"):  # the system's own names, as featx predict writes them
        assert (tmp_path / table).read_bytes().splitlines()[1].startswith(b"caf\xe9/p\xff0.jpg,caf\xe9,")


def test_a_folder_whose_name_would_be_two_classes_in_a_list_is_not_joined(tmp_path):
    for name in ("one", "two"):
        write_photo(tmp_path / name / "x|y" / "0.jpg", 0, (70, 70))
        write_photo(tmp_path / name / "z" / "1.jpg", 1, (70, 70))
        featx.extract_features(tmp_path / name, tmp_path / f"{name}.h5", config("fc7"))
    with pytest.raises(LabelError, match=r"one\.h5: 'x\|y' is one class, and in a list \| stands between several"):
        featx.concat_features([tmp_path / "one.h5", tmp_path / "two.h5"], tmp_path / "both.h5")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("x.npy", {}, UsageError, r"\.npy holds one layer; choose one of conv5, fc6:pre, fc7"),
        ("x.foo", {}, UsageError, r"it can be \.npz, \.npy, \.mat, \.csv, \.parquet, \.tsv"),
        ("x.npz", {"layers": "fc9"}, UnknownLayer, "has no layer 'fc9'"),
        ("x.npz", {"split": "test"}, featx.FeatxError, "has no split 'test'; its splits: none"),
        ("there.npz", {}, UsageError, "is there already; --overwrite"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(made, tmp_path, name, options, error, message):
    (tmp_path / "there.npz").write_bytes(b"mine")
    with pytest.raises(error, match=message):
        featx.export_features(made.path, tmp_path / name, featx.ExportConfig(**options))
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]
    assert (tmp_path / "there.npz").read_bytes() == b"mine"


def test_extract_into_another_format_names_the_command(made, tmp_path, featx):
    found = featx("extract", made.provenance["source"]["path"], "-b", NET, "-o", tmp_path / "x.npz")
    assert found.status == 2
    assert "featx export x.h5 -o x.npz" in found.err


# --- concat


def test_joined_files_hold_all_rows_and_verify(tmp_path):
    one, two = photos_in(tmp_path / "one", range(5)), photos_in(tmp_path / "two", range(5, 9))
    (two / "c").mkdir()
    shutil.copy(one / "a" / "00.jpg", two / "c" / "again.jpg")
    for folder in (one, two):
        featx.extract_features(folder, tmp_path / f"{folder.name}.h5", config())
    report = featx.concat_features([tmp_path / "one.h5", tmp_path / "two.h5"], tmp_path / "all.h5")
    made, joined = (
        featx.open_features(tmp_path / "all.h5"),
        JoinedFeatures([featx.open_features(tmp_path / f"{n}.h5") for n in ("one", "two")]),
    )
    assert (report.images, made.classes) == (10, ["a", "b", "c"])
    for layer in made:
        np.testing.assert_array_equal(made[layer], joined[layer])
    assert [made.classes[k] for k in made.labels] == [joined.classes[k] for k in joined.labels]
    assert featx.verify_file(tmp_path / "all.h5", featx.VerifyConfig(all=True)).passed
    # the list that was written is a source like any other, and gives the same rows
    featx.extract_features(tmp_path / "all.csv", tmp_path / "anew.h5", config())
    anew = featx.open_features(tmp_path / "anew.h5")
    assert anew.paths == made.paths
    np.testing.assert_array_equal(anew["fc7"], made["fc7"])
    before = (tmp_path / "all.h5").read_bytes()
    featx.concat_features([tmp_path / "one.h5", tmp_path / "two.h5"], tmp_path / "all.h5")
    assert (tmp_path / "all.h5").read_bytes() == before


def test_files_that_do_not_fit_are_not_joined(tmp_path):
    folder = photos_in(tmp_path / "one", range(4))
    featx.extract_features(folder, tmp_path / "a.h5", config())
    featx.extract_features(folder, tmp_path / "b.h5", config(squash=True))
    with pytest.raises(PlanMismatch, match=r"preprocess\.squash false in one, true in the other"):
        featx.concat_features([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "c.h5")
    with pytest.raises(UsageError, match="concat joins several files"):
        featx.concat_features([tmp_path / "a.h5"], tmp_path / "c.h5")
    other = photos_in(tmp_path / "two", range(4, 6))
    featx.extract_features(other, tmp_path / "d.h5", config())
    (tmp_path / "c.csv").write_text("path,label\nx.jpg,a\n")
    with pytest.raises(UsageError, match=r"c\.csv is there and is another list"):
        featx.concat_features([tmp_path / "a.h5", tmp_path / "d.h5"], tmp_path / "c.h5")
    assert not (tmp_path / "c.h5").exists()


# --- files that grow


def rows_like_fresh(path, source, tmp_path, layers):
    """The file is, byte for byte in everything that rows are, what an extraction of its own makes."""
    fresh = tmp_path / "fresh.h5"
    fresh.unlink(missing_ok=True)
    featx.extract_features(source, fresh, config(layers, max_bad=1.0))
    return path.read_bytes() == fresh.read_bytes()


def test_new_images_are_added_and_those_that_are_there_are_not_computed_again(tmp_path, monkeypatch):
    folder, out = photos_in(tmp_path / "photos", range(0, 40, 2)), tmp_path / "f.h5"
    featx.extract_features(folder, out, config("fc7"))
    photos_in(folder, range(1, 12, 2))
    (folder / "a" / "04.jpg").unlink()  # gone
    write_photo(folder / "a" / "06.jpg", 77)  # another picture under its name
    (folder / "a" / "08.jpg").rename(folder / "a" / "99.jpg")  # the same under another name
    with pytest.raises(PlanMismatch, match="features file of other images"):
        featx.extract_features(folder, out, config("fc7"))
    seen = []
    compute = featx.extraction.pipeline.compute_block
    monkeypatch.setattr(
        "featx.extraction.pipeline.compute_block",
        lambda e, r, block, *rest: (seen.append(len(block.status)), compute(e, r, block, *rest)),
    )
    notes = []
    reporter = type("Kept", (Reporter,), {"note": lambda self, text: notes.append(text)})()
    featx.extract_features(folder, out, config("fc7", update=True), reporter=reporter)
    assert f"note: 1 image of {out} is not in {folder} any more and leaves the file" in notes
    assert sum(seen) == 6 + 1
    monkeypatch.undo()
    assert rows_like_fresh(out, folder, tmp_path, "fc7")
    assert featx.verify_file(out, featx.VerifyConfig(all=True)).passed
    before = out.stat().st_mtime_ns
    featx.extract_features(folder, out, config("fc7", update=True))
    assert out.stat().st_mtime_ns == before


def test_new_layers_are_added_together_with_new_images(tmp_path):
    folder, out = photos_in(tmp_path / "photos", range(0, 20, 2)), tmp_path / "f.h5"
    (folder / "a" / "broken.jpg").write_bytes(b"nothing")
    featx.extract_features(folder, out, config("fc7", max_bad=1.0))
    photos_in(folder, range(1, 8, 2))
    featx.extract_features(folder, out, config("conv5,fc6:pre,fc7", update=True, max_bad=1.0))
    made = featx.open_features(out)
    assert list(made) == ["conv5", "fc6:pre", "fc7"]
    assert rows_like_fresh(out, folder, tmp_path, "conv5,fc6:pre,fc7")
    before = out.read_bytes()
    with pytest.raises(
        PlanMismatch, match=r"also holds conv5, fc7, which --update would drop; .* -l conv5,fc6:pre,fc7,"
    ):
        featx.extract_features(folder, out, config("fc6:pre", update=True, max_bad=1.0))
    assert out.read_bytes() == before


def test_other_settings_are_no_update(tmp_path):
    folder, out = photos_in(tmp_path / "photos", range(4)), tmp_path / "f.h5"
    featx.extract_features(folder, out, config("fc7"))
    before = out.read_bytes()
    with pytest.raises(PlanMismatch, match=r"preprocess\.mirror false, now true.*cannot be updated"):
        featx.extract_features(folder, out, config("fc7", mirror=True, update=True))
    with pytest.raises(UsageError, match="--update works in one process"):
        featx.extract_features(folder, out, config("fc7", shard="0/2", update=True))
    assert out.read_bytes() == before


def test_killed_while_it_grows_the_old_file_is_whole_and_the_command_goes_on(tmp_path):
    folder, out = photos_in(tmp_path / "photos", range(0, 60, 2), (600, 500)), tmp_path / "f.h5"
    featx.extract_features(folder, out, config("fc7"))
    before = out.read_bytes()
    photos_in(folder, range(1, 120, 2), (600, 500))
    words = [sys.executable, "-m", "featx", "extract", str(folder), "-b", NET, "-l", "fc7", "--update", "--workers", "1",
             "--device", "cpu", "-o", str(out)]  # fmt: skip
    partial = out.with_name("f.h5.partial")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(2000):
        time.sleep(0.01)
        if partial.exists() and process.poll() is None:
            try:
                if (featx.open_features(partial, partial=True).status > Status.PENDING).any():
                    break
            except featx.FeatxError:
                continue
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert out.read_bytes() == before
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0
    assert rows_like_fresh(out, folder, tmp_path, "fc7")


def test_addresses_in_lists_stay_addresses(tmp_path):
    photos_in(tmp_path / "photos", range(4))
    for name, numbers in (("one", (0, 1)), ("two", (2, 3))):
        listed = [f"file://{tmp_path}/photos/{'ab'[number % 2]}/{number:02d}.jpg" for number in numbers]
        (tmp_path / f"{name}.txt").write_text("\n".join(listed))
        featx.extract_features(tmp_path / f"{name}.txt", tmp_path / f"{name}.h5", config("fc7"))
    featx.concat_features([tmp_path / "one.h5", tmp_path / "two.h5"], tmp_path / "all.h5")
    assert featx.open_features(tmp_path / "all.h5").paths[0] == f"file://{tmp_path}/photos/a/00.jpg"
    assert featx.verify_file(tmp_path / "all.h5").passed


def test_a_layer_called_as_something_else_in_the_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "named.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(__import__('collections').OrderedDict("
        "path=nn.Conv2d(3, 4, 3), flat=nn.Flatten(), label=nn.Linear(4 * 14 * 14, 5)))\n"
    )
    monkeypatch.chdir(tmp_path)
    photos_in(tmp_path / "photos", range(2))
    asked = featx.ExtractConfig(backbone="named.py:build", layers="path,label", resize=16, crop=16, device="cpu")
    featx.extract_features("photos", "f.h5", asked)
    for ending in ("npz", "mat", "parquet"):
        with pytest.raises(UsageError, match=r"has a place called (path|label) of its own"):
            featx.export_features("f.h5", f"x.{ending}")
    featx.export_features("f.h5", "x.npy", featx.ExportConfig(layers="label"))
    assert sorted(path.name for path in tmp_path.glob("x*")) == ["x.npy", "x.rows.csv"]


def test_another_result_takes_the_place_of_a_file_where_that_is_asked_for(tmp_path):
    folder, out = photos_in(tmp_path / "photos", range(4)), tmp_path / "f.h5"
    featx.extract_features(folder, out, config("fc6"))
    with pytest.raises(PlanMismatch):
        featx.extract_features(folder, out, config("fc7", mirror=True))
    featx.extract_features(folder, out, config("fc7", mirror=True, overwrite=True))
    featx.extract_features(folder, tmp_path / "fresh.h5", config("fc7", mirror=True))
    assert out.read_bytes() == (tmp_path / "fresh.h5").read_bytes()
    before = out.stat().st_mtime_ns
    featx.extract_features(folder, out, config("fc7", mirror=True, overwrite=True))
    assert out.stat().st_mtime_ns == before
    (tmp_path / "mine.h5").write_bytes(b"something else")
    with pytest.raises(featx.FeatxError):
        featx.extract_features(folder, tmp_path / "mine.h5", config("fc7", overwrite=True))
    assert (tmp_path / "mine.h5").read_bytes() == b"something else"


def test_splits_and_failures_go_along(tmp_path):
    photos_in(tmp_path / "photos", range(6))
    (tmp_path / "photos" / "b" / "05.jpg").write_bytes(b"no image")
    for name, numbers in (("one", (0, 1, 2)), ("two", (3, 4, 5))):
        rows = [
            f"photos/{'ab'[n % 2]}/{n:02d}.jpg,{'ab'[n % 2]},{'test' if n % 3 == 0 else 'train'}" for n in numbers
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label,split", *rows]))
        featx.extract_features(tmp_path / f"{name}.csv", tmp_path / f"{name}.h5", config("fc7", max_bad=1.0))
    featx.concat_features([tmp_path / "one.h5", tmp_path / "two.h5"], tmp_path / "all.h5")
    made = featx.open_features(tmp_path / "all.h5")
    assert [made.splits[split] for split in made.split_of] == ["test", "train", "train"] * 2
    assert [failure.row for failure in made.failures()] == [5]
    assert np.isnan(made["fc7"][5]).all()
    featx.export_features(tmp_path / "all.h5", tmp_path / "x.npz", featx.ExportConfig(split="test"))
    with np.load(tmp_path / "x.npz") as found:
        assert found["path"].tolist() == [made.paths[0], made.paths[3]]
        np.testing.assert_array_equal(found["fc7"], made["fc7"][[0, 3]])


# --- several files as one


def test_heads_and_probes_take_several_files_as_one(capsys, tmp_path):
    for name, numbers in (("one", range(0, 14)), ("two", range(14, 24))):
        folder = photos_in(tmp_path / name, numbers)
        featx.extract_features(folder, tmp_path / f"{name}.h5", config("fc6,fc7"))
    parts = [tmp_path / "one.h5", tmp_path / "two.h5"]
    featx.concat_features(parts, tmp_path / "all.h5")
    asked = featx.FitConfig(layer="fc7", c=1.0)
    for fit in (featx.fit_svm, featx.fit_softmax):
        several = fit(parts, tmp_path / f"{fit.__name__}.safetensors", asked)
        alone = fit(tmp_path / "all.h5", None, asked)
        assert (several.train, several.test, several.metrics) == (alone.train, alone.test, alone.metrics)
        assert several.train + several.test == 24
    head = tmp_path / "fit_svm.safetensors"
    found = featx.evaluate_head(head, parts)
    assert found.images == 24
    assert found.metrics == featx.evaluate_head(head, tmp_path / "all.h5").metrics
    probed = featx.ProbeConfig(per_class=3, repeats=2, c=1.0)
    assert [row.accuracies for row in featx.probe_layers(parts, None, probed).rows] == [
        row.accuracies for row in featx.probe_layers(tmp_path / "all.h5", None, probed).rows
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["fit-svm", *map(str, parts), "-l", "fc7", "--c", "1"])
    assert (stopped.value.code or 0, "not saved" in capsys.readouterr().out) == (0, True)
    featx.extract_features(tmp_path / "two", tmp_path / "other.h5", config("fc6,fc7", mirror=True))
    with pytest.raises(PlanMismatch, match=r"preprocess\.mirror false in one, true in the other"):
        featx.fit_svm([parts[0], tmp_path / "other.h5"], None, asked)
