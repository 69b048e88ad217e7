"""The file is what the schema says, for h5py as for anyone who maps its bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import FileFormatError, LabelError, UnknownLayer
from featx.store.extents import read_extents
from featx.store.open import open_features
from featx.store.schema import FilePlan, LayerSpec, complete_offset, differences, write_skeleton
from featx.store.writer import FeatureWriter

PROVENANCE = {
    "backbone": "alexnet", "weights": {"name": "random:0", "spec": "random:0", "url": None, "sha256": "0" * 64},
    "preprocess": {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "squash": False}, "exif": False, "pooling": "none", "precision": "fp32", "decode": "cpu", "dtype": "float32", "batch_size": 2,
    "request": {}, "command": "featx extract SOURCE", "source": {"path": "/nowhere", "kind": "folder"}, "images": "x",
    "versions": {"torch": "2", "decoder": "Pillow"}, "hardware": "CPU",
}  # fmt: skip
NAMES = [b"a/1.jpg", b"a/\xff\xfe\n.jpg", "b/日本.jpg".encode(), b"c d.jpg", b"e"]


def plan(count: int = 5, layers: int = 2, dtype: str = "float32", classes: tuple[str, ...] = ("ä", "b")) -> FilePlan:
    specs = [LayerSpec("fc7", "classifier.5", "after", "none", (6,), dtype),
             LayerSpec("conv5:pre", "features.10", "before", "none", (3, 2, 2), dtype)][:layers]  # fmt: skip
    paths = NAMES if count == 5 else [b"%06d.jpg" % i for i in range(count)]
    known = {**PROVENANCE, "layers": {s.name: {"node": s.node} for s in specs}}
    labels = [i % (len(classes) + 1) - 1 for i in range(count)]
    return FilePlan(paths, labels, classes, [-1] * count, (), specs, known)


def fill(path: Path, the_plan: FilePlan, batch: int = 2) -> dict[str, np.ndarray]:
    """Write a whole file of numbers that say where they belong."""
    count = len(the_plan.paths)
    values = {
        s.name: (np.arange(count * int(np.prod(s.shape))).reshape(count, *s.shape) + 1).astype(s.dtype)
        for s in the_plan.layers
    }
    with FeatureWriter.open(path, the_plan) as writer:
        for first in writer.pending_blocks(batch):
            write(writer, first, values, batch)
        writer.finish()
    return values


def write(writer: FeatureWriter, first: int, values: dict[str, np.ndarray], batch: int) -> None:
    """One block; the row of image 3 has failed."""
    rows = {name: array[first : first + batch].copy() for name, array in values.items()}
    count = len(next(iter(rows.values())))
    status = np.ones(count, np.uint8)
    reasons = {}
    if first <= 3 < first + count:
        status[3 - first], reasons[3 - first] = 6, "broken: ü" + "x" * 300
        for array in rows.values():
            array[3 - first] = np.nan
    hashes = np.repeat((np.arange(first, first + count) % 256).astype(np.uint8)[:, None], 32, axis=1)
    writer.write_block(
        first,
        rows,
        status=status,
        sha256=hashes,
        orientation=np.full(count, 8, np.uint8),
        decoder=np.ones(count, np.uint8),
        reasons=reasons,
    )


def test_h5py_alone_reads_back_what_was_written(tmp_path):
    values = fill(tmp_path / "f.h5", plan())
    with h5py.File(tmp_path / "f.h5") as file:
        good = [0, 1, 2, 4]
        for name, array in values.items():
            np.testing.assert_array_equal(file[f"features/{name}"][:][good], array[good])
            assert np.isnan(file[f"features/{name}"][3]).all()
        assert file["features/conv5:pre"].attrs["node"] == b"features.10"
        assert list(file["images/path"][:]) == NAMES
        assert list(file["images/label"][:]) == [-1, 0, 1, -1, 0]
        assert list(file["images/status"][:]) == [1, 1, 1, 6, 1]
        assert list(file["images/sha256"][:, 0]) == [0, 1, 2, 3, 4]
        assert [text.decode() for text in file["classes"][:]] == ["ä", "b"]
        assert file["images/reason"][3].decode().startswith("broken: üxxx")
        assert json.loads(file["provenance"][()])["backbone"] == "alexnet"
        assert (file.attrs["format"], file.attrs["schema"], file.attrs["complete"]) == (b"featx", 2, 1)


def test_the_reader_maps_without_copying_and_says_what_failed(tmp_path):
    values = fill(tmp_path / "f.h5", plan())
    features = open_features(tmp_path / "f.h5")
    assert isinstance(features["fc7"], np.memmap)
    assert not features["fc7"].flags.writeable
    np.testing.assert_array_equal(features["conv5:pre"][[0, 4]], values["conv5:pre"][[0, 4]])
    assert features.raw_paths == NAMES
    assert [(f.row, f.path, f.status) for f in features.failures()] == [(3, "c d.jpg", 6)]
    X, y = features.xy("fc7")
    np.testing.assert_array_equal(X, values["fc7"][[1, 2, 4]])
    assert y.tolist() == [0, 1, 0]


@given(count=st.integers(1, 40), batch=st.integers(1, 9), layers=st.integers(1, 2),
       dtype=st.sampled_from(["float16", "float32"]), classes=st.integers(0, 3))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_shape_of_job_is_read_back_as_it_was_written(tmp_path_factory, count, batch, layers, dtype, classes):
    path = tmp_path_factory.mktemp("any") / "f.h5"
    the_plan = plan(count, layers, dtype, tuple("abc"[:classes]))
    values = fill(path, the_plan, batch)
    features = open_features(path)
    assert list(features) == [s.name for s in the_plan.layers]
    for name, array in values.items():
        rows = [i for i in range(count) if i != 3]
        np.testing.assert_array_equal(features[name][rows], array[rows])
        assert features[name].dtype == dtype
    assert features.labels.tolist() == list(the_plan.labels)
    assert path.stat().st_size <= the_plan.bytes_total + 20_000


def test_the_byte_that_says_complete_is_where_it_is_looked_for(tmp_path):
    for count, layers in ((1, 1), (5, 2), (1000, 1)):
        path = tmp_path / f"{count}.h5"
        write_skeleton(path, plan(count, layers))
        whole = path.read_bytes()
        offset = complete_offset(path)
        for value in (0, 1):
            path.write_bytes(whole[:offset] + bytes([value]) + whole[offset + 1 :])
            with h5py.File(path) as file:
                assert file.attrs["complete"] == value
                assert file.attrs["schema"] == 2


def test_the_same_plan_gives_the_same_bytes_and_another_a_named_difference(tmp_path):
    fill(tmp_path / "a.h5", plan())
    fill(tmp_path / "b.h5", plan(), batch=3)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert [str(one) for one in differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}})] == [
        "a.b 1, now 3",
        "c 2, now none",
    ]


def damaged(kind: str, path: Path) -> None:
    """A features file with one thing wrong."""
    fill(path, plan())
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-500])
        return
    if kind == "no HDF5":
        path.write_bytes(b"something else")
        return
    with h5py.File(path, "r+") as file:
        match kind:
            case "another schema":
                file.attrs["schema"] = 3
            case "another format":
                file.attrs["format"] = "netcdf"
            case "a part missing":
                del file["images/status"]
            case "rows missing":
                del file["features/fc7"]
                file["features/fc7"] = np.zeros((3, 6), np.float32)
            case "numbers of no use":
                del file["features/fc7"]
                file["features/fc7"] = np.zeros((5, 6), np.int32)
            case "values elsewhere":
                del file["features/fc7"]
                file.create_dataset("features/fc7", (5, 6), "f4", external=[("/etc/passwd", 0, 120)])
            case "a link outside":
                del file["features/fc7"]
                file["features/fc7"] = h5py.ExternalLink("/etc/passwd", "/x")
            case "broken provenance":
                file["provenance"][()] = b"{"


@pytest.mark.parametrize(
    "kind", ["cut", "no HDF5", "another schema", "another format", "a part missing", "rows missing",
             "numbers of no use", "values elsewhere", "a link outside", "broken provenance"],
)  # fmt: skip
def test_a_damaged_or_hostile_file_is_refused_in_one_line(kind, tmp_path):
    damaged(kind, tmp_path / "f.h5")
    with pytest.raises(FileFormatError) as caught:
        open_features(tmp_path / "f.h5")["fc7"]
    assert "f.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repacked_file_is_read_though_it_cannot_be_mapped(tmp_path):
    values = fill(tmp_path / "f.h5", plan())
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        attributes = dict(file["features/fc7"].attrs)
        content = file["features/fc7"][:]
        del file["features/fc7"]
        packed = file.create_dataset("features/fc7", data=content, chunks=(2, 6), compression="gzip")
        packed.attrs.update(attributes)
    np.testing.assert_array_equal(open_features(tmp_path / "f.h5")["fc7"][:3], values["fc7"][:3])


def test_every_dataset_is_contiguous_aligned_and_little_endian(tmp_path):
    fill(tmp_path / "f.h5", plan())
    with h5py.File(tmp_path / "f.h5") as file:
        extents = read_extents(file, "f.h5")
    assert len(extents) == 17
    for name, extent in extents.items():
        assert extent.offset is not None or 0 in extent.shape, name
        assert (extent.offset or 0) % 64 == 0, name
        assert extent.dtype.byteorder in "<=|", name


def replace(path: Path, name: str, values: object, dtype: object = None) -> None:
    """Put another dataset into the place of one, attributes kept."""
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=values, dtype=dtype).attrs.update(attributes)


@pytest.mark.parametrize(
    ("name", "values", "dtype"),
    [
        ("classes", ["ä", "b"], h5py.string_dtype()),  # variable-length: pointers in the file
        ("images/path", [b"a"] * 5, h5py.string_dtype()),
        ("images/path", b"a", "S1"),
        ("images/label", [7, 0, 0, 0, 0], "i4"),
        ("images/label", [-2, 0, 0, 0, 0], "i4"),
        ("images/split", [0, 0, 0, 0, 0], "i4"),
        ("images/status", [1, 1, 77, 1, 1], "u1"),
        ("images/sha256", [0] * 5, "u1"),
        ("features/fc7", np.zeros((5, 0)), "f4"),
        ("provenance", b"[1]", "S3"),
        ("provenance", b"{}", "S2"),
        ("provenance", b"[" * 5000, "S5000"),
        ("provenance", 7, "i4"),
    ],
)
def test_parts_that_are_not_what_they_should_be_are_refused_before_they_are_used(tmp_path, name, values, dtype):
    fill(tmp_path / "f.h5", plan())
    replace(tmp_path / "f.h5", name, values, dtype)
    with pytest.raises(FileFormatError) as caught:
        open_features(tmp_path / "f.h5")
    assert "\n" not in str(caught.value)


def test_no_flipped_byte_of_the_file_gives_anything_but_an_answer_or_a_refusal(tmp_path):
    fill(tmp_path / "f.h5", plan())
    whole = (tmp_path / "f.h5").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "g.h5").write_bytes(changed)
        try:
            features = open_features(tmp_path / "g.h5")
            (features.paths, features.failures(), features.xy("fc7"), features.sha256)
        except (FileFormatError, LabelError, UnknownLayer):
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    os.mkfifo(tmp_path / "f.h5") if kind == "fifo" else (tmp_path / "f.h5").mkdir()
    with pytest.raises(FileFormatError, match=r"is not a regular file|is a folder"):
        open_features(tmp_path / "f.h5")
