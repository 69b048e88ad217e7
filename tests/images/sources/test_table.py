"""Parquet and Arrow files give the rows of a folder of the same files."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_photo

import featx
from featx.errors import SourceError
from featx.images.sources.scan import scan
from featx.status import Status

CONFIG = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu", max_bad=1.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(9):
        write_photo(folder / f"{number}.jpg", number)
    (folder / "9.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.h5"
    featx.extract_features(photos, path, CONFIG)
    return featx.open_features(path)


def table_of(photos, struct):
    contents = [path.read_bytes() for path in sorted(photos.iterdir())]
    images = [{"bytes": content, "path": None} for content in contents] if struct else contents
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    table = pa.table({"image": pa.array(images, kind), "label": pa.array([0, 1] * 5)})
    return table.replace_schema_metadata({"huggingface": json.dumps(info)})


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("ending", ["parquet", "arrow", "stream.arrow"])
def test_rows_are_those_of_the_files(photos, expected, tmp_path, struct, ending):
    table, path = table_of(photos, struct), tmp_path / f"t.{ending}"
    if ending == "parquet":
        pq.write_table(table, path, row_group_size=3)
    else:
        new = pa.ipc.new_stream if "stream" in ending else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    featx.extract_features(path, tmp_path / "f.h5", CONFIG)
    found = featx.open_features(tmp_path / "f.h5")
    np.testing.assert_array_equal(found["fc7"], expected["fc7"])
    np.testing.assert_array_equal(found.sha256, expected.sha256)
    assert [found.classes[label] for label in found.labels] == ["cat", "dog"] * 5
    assert featx.verify_file(found.path, featx.VerifyConfig(all=True)).passed


def test_a_table_of_paths_is_a_list(photos, expected, tmp_path):
    pq.write_table(pa.table({"file_name": ["5.jpg", "1.jpg"], "label": ["x", None]}), photos / "list.parquet")
    try:
        featx.extract_features(photos / "list.parquet", tmp_path / "f.h5", CONFIG)
    finally:
        (photos / "list.parquet").unlink()
    found = featx.open_features(tmp_path / "f.h5")
    assert (found.paths, found.classes, found.labels.tolist()) == (["5.jpg", "1.jpg"], ["x"], [0, -1])
    np.testing.assert_array_equal(found["fc7"], expected["fc7"][[5, 1]])


def test_a_table_of_images_that_are_named_and_not_held_is_a_list_too(photos, expected, tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for images, paths in (
        ([{"bytes": None, "path": str(photos / "5.jpg")}, {"bytes": None, "path": str(photos / "1.jpg")}], 2),
        ([{"bytes": None, "path": str(photos / "5.jpg")}, {"bytes": b"no image", "path": "x"}], 0),
        ([{"bytes": None, "path": None}, {"bytes": None, "path": "x"}], 0),
    ):
        pq.write_table(pa.table({"image": pa.array(images, kind), "label": ["x", "y"]}), tmp_path / "t.parquet")
        found = scan(tmp_path / "t.parquet")
        assert (found.kind, found.paths[0]) == (
            ("list", os.fsencode(photos / "5.jpg")) if paths else ("table", b"00000000")
        )
        if paths:
            featx.extract_features(tmp_path / "t.parquet", tmp_path / "f.h5", CONFIG)
            made = featx.open_features(tmp_path / "f.h5")
            np.testing.assert_array_equal(made["fc7"], expected["fc7"][[5, 1]])
            assert [made.classes[label] for label in made.labels] == ["x", "y"]


def test_rows_without_bytes_and_tables_without_images(photos, tmp_path):
    pq.write_table(
        pa.table({"image": pa.array([None, (photos / "0.jpg").read_bytes()], pa.binary())}), tmp_path / "t.parquet"
    )
    featx.extract_features(tmp_path / "t.parquet", tmp_path / "f.h5", CONFIG)
    found = featx.open_features(tmp_path / "f.h5")
    assert found.status.tolist() == [Status.EMPTY, Status.DONE]
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="has the columns x; needed is one of bytes"):
        scan(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"y\.parquet cannot be read"):
        scan(tmp_path / "y.parquet")
    with pytest.raises(SourceError, match="no file"):
        scan(tmp_path / "z.parquet")


def test_labels_and_paths_that_are_none(photos, tmp_path):
    content = (photos / "0.jpg").read_bytes()
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    images = pa.array([{"bytes": content, "path": None}] * 4, kind)
    pq.write_table(pa.table({"image": images, "label": [float("nan"), None, 3.0, -1.0]}), tmp_path / "t.parquet")
    found = scan(tmp_path / "t.parquet")
    assert (found.kind, found.classes, found.labels) == ("table", ("3.0",), (-1, -1, 0, -1))


@pytest.mark.parametrize(
    ("columns", "metadata", "message"),
    [
        ({"path": ["a.jpg", None]}, None, "row 1: None is no path"),
        ({"path": ["a\0.jpg"]}, None, "is no path"),
        ({"path": [b"a.jpg"]}, None, "cannot be|needed is one of bytes|no file"),
        ({"image": [b"x"], "label": [0]}, b"{", "huggingface metadata cannot be read"),
        ({"image": [b"x"], "label": [0]}, b"[" * 100_000, "huggingface metadata cannot be read"),
        ({"image": [b"x"], "label": ["a\0b"]}, None, "zero bytes"),
    ],
)
def test_hostile_tables_are_one_line(tmp_path, columns, metadata, message):
    table = pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "t.parquet")
    if b"a.jpg" in columns.get("path", []):  # bytes: an image's, whatever the column is called
        assert scan(tmp_path / "t.parquet").kind == "table"
        return
    with pytest.raises(SourceError, match=message):
        scan(tmp_path / "t.parquet")
    for info in (b'{"info": null}', b'{"info": {"features": [1]}}'):
        good = pa.table({"image": [b"x"], "label": [1]}).replace_schema_metadata({"huggingface": info})
        pq.write_table(good, tmp_path / "g.parquet")
        assert scan(tmp_path / "g.parquet").classes == ("1",)
