"""Tars, WebDataset's shards, HDF5 stimuli and standard input give the rows that a folder of the same files gives."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile

import h5py
import numpy as np
import pytest
from conftest import write_photo
from PIL import Image

import featx
from featx.errors import FeatxError, PlanMismatch, SourceError
from featx.images.contents import copies_in, files_state
from featx.images.sources.scan import scan
from featx.status import Status

CONFIG = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu", max_bad=1.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of eleven files in two classes: a copy and a broken one among them."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(9):
        write_photo(folder / "ab"[number % 2] / f"{number}.jpg", number)
    (folder / "b" / "copy.jpg").write_bytes((folder / "a" / "0.jpg").read_bytes())
    (folder / "b" / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.h5"
    featx.extract_features(photos, path, CONFIG)
    return featx.open_features(path)


def tar_of(folder, path):
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*"), key=lambda file: file.name[::-1]):  # in another order
            if file.is_file():
                archive.add(file, file.relative_to(folder).as_posix())
    return path


def same_rows(found, expected):
    np.testing.assert_array_equal(found["fc7"], expected["fc7"])
    np.testing.assert_array_equal(found.sha256, expected.sha256)
    np.testing.assert_array_equal(found.status, expected.status)


def test_a_tar_gives_the_rows_of_the_folder_it_was_made_of(photos, expected, tmp_path):
    tar = tar_of(photos, tmp_path / "photos.tar")
    manifest = scan(tar)
    assert (manifest.kind, manifest.classes, manifest.skipped) == ("tar", ("a", "b"), {"not an image name": 1})
    assert [*manifest.paths] == expected.raw_paths
    featx.extract_features(tar, tmp_path / "f.h5", CONFIG)
    found = featx.open_features(tmp_path / "f.h5")
    same_rows(found, expected)
    assert [found.classes[label] for label in found.labels] == [expected.classes[label] for label in expected.labels]
    assert featx.verify_file(found.path, featx.VerifyConfig(all=True)).passed
    copies = copies_in(manifest)
    assert copies[manifest.paths.index(b"b/copy.jpg")] == manifest.paths.index(b"a/0.jpg")
    assert featx.check_source(tar).images == len(manifest)
    moved = tar.rename(tmp_path / "moved.tar")
    with pytest.raises(SourceError, match="--source"):
        featx.verify_file(found.path)
    assert featx.verify_file(found.path, featx.VerifyConfig(source=str(moved))).passed
    state = files_state(scan(moved))
    os.utime(moved, (1, 1))
    assert files_state(scan(moved)) != state


def test_shards_of_a_webdataset_give_their_labels_in_order(photos, expected, tmp_path):
    order = []
    for shard in range(3):
        with tarfile.open(tmp_path / f"s-{shard:03d}.tar", "w") as archive:
            for number in range(3 * shard, 3 * shard + 3):
                content = (photos / "ab"[number % 2] / f"{number}.jpg").read_bytes()
                beside = b"7" if shard == 0 else json.dumps({"label": "eight", "more": [1]}).encode()
                ending = "cls" if shard == 0 else "json"
                for name, data in (
                    (f"{number:06d}.{ending}", beside),
                    (f"{number:06d}.jpg", content),
                    (f"{number:06d}.txt", b"a caption"),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
                order.append(f"s-{shard:03d}.tar/{number:06d}.jpg")
    featx.extract_features(tmp_path / "s-{000..002}.tar", tmp_path / "f.h5", CONFIG)
    found = featx.open_features(tmp_path / "f.h5")
    assert found.paths == order
    assert [found.classes[label] for label in found.labels] == ["7"] * 3 + ["eight"] * 6
    rows = [expected.paths.index(f"{'ab'[number % 2]}/{number}.jpg") for number in range(9)]
    np.testing.assert_array_equal(found["fc7"], expected["fc7"][rows])
    assert featx.verify_file(found.path).passed
    featx.export_features(found.path, tmp_path / "x.tsv")  # thumbnails are read from the shards
    assert (tmp_path / "x.sprite.png").exists()


def test_tars_that_cannot_be_read_say_why(photos, tmp_path):
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.add(photos / "a" / "0.jpg", "0.jpg")
    with pytest.raises(SourceError, match="uncompress it first"):
        scan(tmp_path / "z.tar")
    with pytest.raises(SourceError, match=r"no file .*s-01\.tar"):
        scan(tmp_path / "s-{01..02}.tar")
    with pytest.raises(SourceError, match="names 200,000 files"):
        scan(tmp_path / "s-{000001..200000}.tar")
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        archive.add(photos / "a" / "0.jpg", "0.jpg")
        archive.add(photos / "a" / "2.jpg", "0.jpg")
    with pytest.raises(SourceError, match=r"holds 0\.jpg more than once"):
        scan(tmp_path / "twice.tar")
    whole = tar_of(photos, tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"cut\.tar cannot be read as a tar"):
        scan(tmp_path / "cut.tar")
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        archive.add(photos / "a" / "0.jpg", "0.jpg")
        member = tarfile.TarInfo("link.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    found = scan(tmp_path / "links.tar")
    assert (found.paths, found.skipped) == ((b"0.jpg",), {"link or sparse file in a tar": 1})


@pytest.mark.parametrize("grey", [False, True])
def test_rows_of_an_hdf5_dataset_are_the_same_images_as_files(tmp_path, grey):
    generator = np.random.default_rng(0)
    stimuli = generator.integers(0, 256, (7, 70, 90) if grey else (7, 70, 90, 3), np.uint8)
    with h5py.File(tmp_path / "stimuli.h5", "w") as file:
        file.create_dataset("set1/images", data=stimuli, chunks=(2, *stimuli.shape[1:]), compression="gzip")
        file["wrong"] = np.zeros((3, 4, 4), np.float32)
    for row, pixels in enumerate(stimuli):
        (tmp_path / "files").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "files" / f"{row:08d}.png")
    featx.extract_features(tmp_path / "files", tmp_path / "a.h5", CONFIG)
    source = f"{tmp_path}/stimuli.h5:/set1/images"
    featx.extract_features(source, tmp_path / "b.h5", CONFIG)
    files, rows = featx.open_features(tmp_path / "a.h5"), featx.open_features(tmp_path / "b.h5")
    np.testing.assert_array_equal(rows["fc7"], files["fc7"])
    assert rows.paths == [f"{row:08d}" for row in range(7)]
    assert featx.verify_file(tmp_path / "b.h5").passed
    with h5py.File(tmp_path / "stimuli.h5", "a") as file:
        file["set1/images"][3] = 0
    with pytest.raises(FeatxError, match=r"00000003 .*has changed|00000003 has changed"):
        featx.verify_file(tmp_path / "b.h5", featx.VerifyConfig(all=True))
    with pytest.raises(SourceError, match="has no dataset nothing"):
        scan(f"{tmp_path}/stimuli.h5:/nothing")
    with pytest.raises(SourceError, match=r"wrong is float32 \(3, 4, 4\); images are uint8"):
        scan(f"{tmp_path}/stimuli.h5:/wrong")
    with pytest.raises(SourceError, match=r"no file .*gone\.h5"):
        scan(f"{tmp_path}/gone.h5:/images")


def test_standard_input_lists_images(photos, expected, tmp_path):
    names = [f"b/{number}.jpg" for number in (3, 1)] + ["a/0.jpg", "a/0.jpg"]
    words = [
        sys.executable,
        "-m",
        "featx",
        "extract",
        "-",
        "-b",
        "alexnet-mini",
        "-l",
        "fc7",
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "f.h5"),
    ]
    listed = "\n".join(names) + "\n"
    done = subprocess.run(words, input=listed.encode(), cwd=photos, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = featx.open_features(tmp_path / "f.h5")
    assert found.paths == names
    np.testing.assert_array_equal(found["fc7"], expected["fc7"][[expected.paths.index(name) for name in names]])
    assert featx.verify_file(found.path).passed
    again = subprocess.run(words, input=listed.encode(), cwd=photos, check=False, capture_output=True, text=False)
    assert again.returncode == 0
    empty = subprocess.run(
        [*words[:-1], str(tmp_path / "g.h5")], input=b"", cwd=photos, check=False, capture_output=True, text=False
    )
    assert empty.returncode == 2
    assert b"standard input lists no images" in empty.stderr


def test_resumed_from_a_tar_the_rows_are_the_same(photos, expected, tmp_path):
    tar = tar_of(photos, tmp_path / "photos.tar")
    featx.extract_features(tar, tmp_path / "f.h5", CONFIG)
    partial = tmp_path / "f.h5.partial"
    (tmp_path / "f.h5").rename(partial)
    with h5py.File(partial, "r+") as file:
        file["images/status"][4:] = Status.PENDING
        file["features/fc7"][4:] = 0
        file.attrs["complete"] = np.uint8(0)
    featx.extract_features(tar, tmp_path / "f.h5", CONFIG)
    again = featx.open_features(tmp_path / "f.h5")
    same_rows(again, expected)


def member(archive, name, data=b"", **attributes):
    made = tarfile.TarInfo(name)
    made.size = len(data)
    for key, value in attributes.items():
        setattr(made, key, value)
    archive.addfile(made, io.BytesIO(data))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b"[" * 200_000, "is no label"), ("a.json", b'{"label": "\\ud800"}', "is not Unicode"),
        ("a.cls", b"one\ntwo", "several lines"), ("a.cls", b"x\0y", "zero bytes"), ("a.cls", b"\xff\xfe", "is no label"),
    ],
)  # fmt: skip
def test_labels_that_are_none_are_refused(tmp_path, name, data, message):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        member(archive, "a.jpg", b"x")
        member(archive, name, data)
    with pytest.raises(SourceError, match=message):
        scan(tmp_path / "t.tar")


def test_hostile_headers_of_tars_are_one_line(tmp_path):
    for number, headers in enumerate(({"mtime": "inf"}, {"size": "-5"}, {"size": str(2**62)}, {"size": str(2**70)})):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            member(archive, "a.jpg", b"x", pax_headers=headers)
            member(archive, "b.jpg", b"y")
        with contextlib.suppress(SourceError):  # either it is read or it is refused
            assert scan(tmp_path / f"{number}.tar").paths[-1] == b"b.jpg"
    with pytest.raises(SourceError, match="names 100,000,000,000,000 files"):
        scan(tmp_path / "s-{0..99999999999999}.tar")


def test_a_row_that_no_memory_holds_is_too_large(tmp_path):
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("images", (1, 400_000, 400_000), "u1", chunks=(1, 1000, 1000))
    featx.extract_features(f"{tmp_path}/bomb.h5:/images", tmp_path / "f.h5", CONFIG)
    assert featx.open_features(tmp_path / "f.h5").status.tolist() == [Status.TOO_LARGE]


def test_a_dataset_that_was_replaced_is_noticed(tmp_path):
    for seed in (0, 1):
        with h5py.File(tmp_path / "s.h5", "w") as file:
            file["images"] = np.random.default_rng(seed).integers(0, 256, (3, 70, 70, 1), np.uint8)
        if seed == 0:
            featx.extract_features(f"{tmp_path}/s.h5:/images", tmp_path / "f.h5", CONFIG)
    with pytest.raises(PlanMismatch, match="00000000"):
        featx.extract_features(f"{tmp_path}/s.h5:/images", tmp_path / "f.h5", CONFIG)


def test_shards_are_sorted_in_themselves_and_every_key_of_a_label_counts(photos, tmp_path):
    image = (photos / "a" / "0.jpg").read_bytes()
    with tarfile.open(tmp_path / "s-1.tar", "w") as archive:
        for name, beside in (("c", {"cls": 3}), ("a", {"class": "x"}), ("b", {"label": True, "cls": 1})):
            member(archive, f"{name}.jpg", image)
            member(archive, f"{name}.json", json.dumps(beside).encode())
    with tarfile.open(tmp_path / "s-2.tar", "w") as archive:
        member(archive, "a.jpg", image)
    found = scan(tmp_path / "s-{1..2}.tar")
    assert found.paths == (b"s-1.tar/a.jpg", b"s-1.tar/b.jpg", b"s-1.tar/c.jpg", b"s-2.tar/a.jpg")
    assert [None if label < 0 else found.classes[label] for label in found.labels] == ["x", "True", "3", None]


def test_a_mask_beside_an_image_is_no_image_of_its_own(photos, tmp_path):
    image = (photos / "a" / "0.jpg").read_bytes()
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for key in ("a", "b"):
            member(archive, f"{key}.jpg", image)
            member(archive, f"{key}.seg.jpg", image)
            member(archive, f"{key}.cls", b"3")
        member(archive, "c.left.jpg", image)
        member(archive, "c.right.jpg", image)
    found = scan(tmp_path / "s.tar")
    assert found.paths == (b"a.jpg", b"b.jpg", b"c.left.jpg", b"c.right.jpg")
    assert found.skipped == {"another picture of its sample": 2}


def test_folders_in_shards_are_classes_and_splits(photos, tmp_path):
    image = (photos / "a" / "0.jpg").read_bytes()
    for shard in (1, 2):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as archive:
            member(archive, f"train/dog/{shard}.jpg", image)
            member(archive, f"test/cat/{shard}.jpg", image)
    found = scan(tmp_path / "s-{1..2}.tar")
    assert (found.classes, found.splits) == (("cat", "dog"), ("test", "train"))
    assert [found.classes[label] for label in found.labels] == ["cat", "dog"] * 2


def test_names_with_newlines_come_through_standard_input(tmp_path):
    write_photo(tmp_path / "two\nlines.jpg", 0)
    words = [sys.executable, "-m", "featx", "extract", "-", "-b", "alexnet-mini", "--device", "cpu", "-o", "f.h5"]
    done = subprocess.run(words, input=b"two\nlines.jpg\0", cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert featx.open_features(tmp_path / "f.h5").paths == ["two\nlines.jpg"]
