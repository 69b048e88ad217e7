"""A source becomes the manifest it should: order, labels, splits, refusals."""

from __future__ import annotations

import os
import random
import subprocess
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from featx.errors import SourceError
from featx.images.manifest import Manifest
from featx.images.sources.read import Archive, read_member
from featx.images.sources.scan import scan
from featx.runtime.text import printable


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def labels(manifest) -> dict[str, str | None]:
    names = [None if i < 0 else manifest.classes[i] for i in manifest.labels]
    return dict(zip(map(os.fsdecode, manifest.paths), names, strict=True))


def test_a_folder_is_sorted_by_path_whatever_order_the_files_were_made_in(tmp_path):
    names = [f"c{i % 3}/{i}.jpg" for i in range(30)]
    shuffled = random.Random(0).sample(names, len(names))
    manifest = scan(touch(tmp_path, *shuffled))
    assert [os.fsdecode(p) for p in manifest.paths] == sorted(names)


def test_the_first_folder_is_the_class_and_images_beside_the_folders_have_none(tmp_path):
    manifest = scan(touch(tmp_path, "cat/1.jpg", "cat/deep/2.jpg", "dog/1.jpg", "loose.jpg"))
    assert labels(manifest) == {"cat/1.jpg": "cat", "cat/deep/2.jpg": "cat", "dog/1.jpg": "dog", "loose.jpg": None}
    assert manifest.classes == ("cat", "dog")


def test_train_and_test_folders_are_splits_and_not_classes(tmp_path):
    manifest = scan(touch(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg"))
    assert manifest.classes == ("cat", "dog")
    assert [manifest.splits[i] for i in manifest.split_of] == ["test", "train", "train"]
    assert labels(manifest)["test/cat/3.jpg"] == "cat"


def test_two_classes_called_train_and_test_with_images_in_them_stay_classes(tmp_path):
    manifest = scan(touch(tmp_path, "train/1.jpg", "test/2.jpg"))
    assert (manifest.classes, manifest.splits) == (("test", "train"), ())


def test_a_list_keeps_its_order_and_is_relative_to_its_own_folder(tmp_path):
    touch(tmp_path, "b.jpg", "a.jpg", "sub/c d.jpg")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfb.jpg\r\n\r\n./sub/c d.jpg\r\na.jpg")
    manifest = scan(tmp_path / "list.txt")
    assert manifest.paths == (b"b.jpg", b"sub/c d.jpg", b"a.jpg")
    assert manifest.full_path(1) == tmp_path / "sub/c d.jpg"


def test_a_list_separated_by_zeros_can_name_files_with_newlines(tmp_path):
    touch(tmp_path, "a\nb.jpg", "c.jpg")
    (tmp_path / "list").write_bytes(b"a\nb.jpg\0c.jpg\0")
    assert scan(tmp_path / "list").paths == (b"a\nb.jpg", b"c.jpg")


@pytest.mark.parametrize("again", ["a.jpg", "./a.jpg"])
def test_the_same_path_twice_is_two_rows(tmp_path, again):
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text(f"a.jpg\nb.jpg\n{again}\n")
    assert scan(tmp_path / "list.txt").paths == (b"a.jpg", b"b.jpg", b"a.jpg")


def test_a_csv_gives_labels_and_splits_in_its_own_order(tmp_path):
    touch(tmp_path, "z.jpg", "a, b.jpg", "c.jpg")
    (tmp_path / "s.csv").write_text(
        'path,label,split,note\nz.jpg,dog,train,x\n"a, b.jpg",cat,test,\nc.jpg,,train,\n', encoding="utf-8-sig"
    )
    manifest = scan(tmp_path / "s.csv")
    assert labels(manifest) == {"z.jpg": "dog", "a, b.jpg": "cat", "c.jpg": None}
    assert [manifest.splits[i] for i in manifest.split_of] == ["train", "test", "train"]


def test_a_csv_without_the_right_columns_says_which_it_has(tmp_path):
    (tmp_path / "s.csv").write_text("file,class\na.jpg,cat\n")
    with pytest.raises(SourceError, match=r"the columns are file, class; needed are path,label"):
        scan(tmp_path / "s.csv")


def test_a_zip_is_read_like_the_folder_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name in ("photos/dog/1.jpg", "photos/cat/1.jpg", "photos/.DS_Store", "__MACOSX/photos/cat/._1.jpg"):
            archive.writestr(name, b"x")
    manifest = scan(tmp_path / "s.zip")
    assert labels(manifest) == {"photos/cat/1.jpg": "cat", "photos/dog/1.jpg": "dog"}
    assert manifest.skipped == {"hidden": 2}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_name_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("a.jpg", b"x")
        archive.writestr("a.jpg", b"y")
    with pytest.raises(SourceError, match=r"holds a\.jpg more than once"):
        scan(tmp_path / "s.zip")


def test_a_loop_of_links_ends(tmp_path):
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "again").symlink_to("..")
    (tmp_path / "b").symlink_to("a")
    manifest = scan(tmp_path, follow_links=True)
    assert manifest.paths == (b"a/1.jpg", b"b/1.jpg")
    assert manifest.skipped == {"link that loops": 2}
    assert scan(tmp_path).paths == (b"a/1.jpg",)


def test_nothing_to_do_is_said_with_what_was_left_out(tmp_path):
    touch(tmp_path, "notes.txt", "empty/readme.md")
    with pytest.raises(SourceError, match=r"no images in .*skipped: 2 not an image name"):
        scan(tmp_path)


@pytest.mark.parametrize("source", ["no/such/thing", "/dev/null"])
def test_a_source_that_is_none_is_refused(source):
    with pytest.raises(SourceError):
        scan(source)


def test_one_image_is_a_source(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    found = scan(tmp_path / "x.png")
    assert (found.paths, found.labels, found.full_path(0)) == ((b"x.png",), (-1,), tmp_path / "x.png")


def test_a_features_file_is_not_taken_for_a_list(tmp_path):
    (tmp_path / "f.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(SourceError, match=r"f\.h5 is a features file; give the images it was made from"):
        scan(tmp_path / "f.h5")


def test_the_digest_sees_every_change_of_paths_labels_and_order(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    digests = set()
    for text in (
        "path,label\na.jpg,x\nb.jpg,y\n",
        "path,label\nb.jpg,y\na.jpg,x\n",
        "path,label\na.jpg,y\nb.jpg,x\n",
    ):
        (tmp_path / "s.csv").write_text(text)
        digests.add(scan(tmp_path / "s.csv").digest)
    assert len(digests) == 3


def test_names_are_printed_on_one_line():
    assert printable("a\nb\u202e\udcff.jpg") == "a\\nb\\u202e\\xff.jpg"


def test_a_link_to_itself_is_an_image_that_is_missing(tmp_path):
    touch(tmp_path, "a.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "loop").symlink_to("loop")
    manifest = scan(tmp_path)
    assert manifest.paths == (b"a.jpg", b"loop.jpg")
    assert manifest.skipped == {"not an image name": 1}


def test_a_deep_tree_is_walked_to_its_end(tmp_path):
    folder = tmp_path
    here = os.getcwd()
    try:
        for _ in range(1100):
            os.mkdir(folder := Path("d") if folder is not tmp_path else tmp_path / "d")
            os.chdir(folder)
        Path("x.jpg").write_bytes(b"x")
    finally:
        os.chdir(here)
    paths = scan(tmp_path).paths
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # deeper than shutil.rmtree can go
    assert paths == (b"d/" * 1100 + b"x.jpg",)


def test_dots_after_a_link_are_left_to_the_operating_system(tmp_path):
    touch(tmp_path, "real/inner/y.jpg", "real/x.jpg", "x.jpg")
    (tmp_path / "link").symlink_to("real/inner")
    (tmp_path / "list.txt").write_text("link/../x.jpg\n.//real/inner/y.jpg\n")
    manifest = scan(tmp_path / "list.txt")
    assert manifest.paths == (b"link/../x.jpg", b"real/inner/y.jpg")
    assert manifest.full_path(0).resolve() == tmp_path / "real/x.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'path,label\n"a.jpg,x\nb.jpg,y\n', "line 2: not CSV"),
        (b'path,label\n"a\nb.jpg",x\nc.jpg,x\n"d.jpg,y\ne.jpg,y\n', "line 5: not CSV"),
        (
            b"path,label\na.jpg,x\nb.jpg,gr\xfcn\n",
            "line 3: the label, split or group is not UTF-8; save the file as UTF-8",
        ),
        (b"path,label,split\na.jpg,x,tr\xfcin\n", "line 2: the label, split or group is not UTF-8"),
        (b"path,label\na\0.jpg,x\n", "zero byte"),
        (b"path,label\na.jpg,x\0\n", "zero byte"),
        (b"path,label,path\na.jpg,x,b.jpg\n", "a column appears twice"),
        (b"path,label\na.jpg,x,y\n", "line 2: needs a path and at most 2 columns"),
        (b"path,label\n,x\n", "line 2: needs a path"),
        (b"path,label\n" + b"a" * 200_000 + b",x\n", "not CSV"),
    ],
)
def test_a_csv_with_a_mistake_is_refused_and_the_line_named(tmp_path, content, message):
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        scan(tmp_path / "s.csv")


# --- lists as other tools write them

CATS_AND_DOGS = [("cat/0.png", "cat"), ("cat/1.png", "cat"), ("dog/0.png", "dog")]


def written(folder: Path, name: str, content: bytes) -> list[tuple[str, str | None]]:
    touch(folder, "cat/0.png", "cat/1.png", "dog/0.png")
    (folder / name).write_bytes(content)
    return list(labels(scan(folder / name)).items())


CSV = "path,label\ncat/0.png,cat\ncat/1.png,cat\ndog/0.png,dog\n"


@pytest.mark.parametrize(("name", "content"), [
    ("plain.csv", CSV.encode()),
    ("excel.csv", CSV.encode("utf-8-sig").replace(b"\n", b"\r\n")),
    ("powershell.csv", CSV.encode("utf-16")),
    ("powershell-without-mark.csv", CSV.encode("utf-16-le")),
    ("big-endian.csv", b"\xfe\xff" + CSV.encode("utf-16-be")),
    ("semicolons.csv", CSV.replace(",", ";").encode()),
    ("german-excel.csv", b"sep=;\r\n" + CSV.replace(",", ";").replace("\n", "\r\n").encode()),
    ("tabs.tsv", CSV.replace(",", "\t").encode()),
    ("tabs.txt", CSV.replace(",", "\t").encode()),
    ("comma.txt", CSV.encode()),
    ("old-mac.csv", CSV.replace("\n", "\r").encode()),
    ("spaces.csv", CSV.replace(",", ", ").encode()),
    ("trailing.csv", CSV.replace("cat\n", "cat  \n").encode()),
    ("case.csv", CSV.replace("path,label", "Path,Label").encode()),
    ("pandas.csv", b",path,label\n0,cat/0.png,cat\n1,cat/1.png,cat\n2,dog/0.png,dog\n"),
    ("empty-rows.csv", CSV.encode() + b",\n\n , \n"),
    ("backslashes.csv", CSV.replace("/", "\\").encode()),
    ("quoted.csv", b'path,label\n"cat/0.png","cat"\n"cat/1.png","cat"\n"dog/0.png","dog"\n'),
    ("caffe.txt", b"cat/0.png cat\ncat/1.png cat\ndog/0.png dog\n"),
    ("caffe-tabs.txt", b"cat/0.png\tcat\ncat/1.png\tcat\ndog/0.png\tdog\n"),
    ("caffe-windows.txt", b"cat\\0.png cat\r\ncat\\1.png cat\r\ndog\\0.png dog\r\n"),
    ("comma-without-header.txt", b"cat/0.png,cat\ncat/1.png,cat\ndog/0.png,dog\n"),
])  # fmt: skip
def test_labelled_lists_are_read_as_other_tools_write_them(tmp_path, name, content):
    assert written(tmp_path, name, content) == CATS_AND_DOGS


LIST = "cat/0.png\ncat/1.png\ndog/0.png\n"


@pytest.mark.parametrize(("name", "content"), [
    ("plain.txt", LIST.encode()),
    ("windows.txt", LIST.replace("\n", "\r\n").encode()),
    ("powershell.txt", LIST.encode("utf-16")),
    ("backslashes.txt", LIST.replace("/", "\\").encode()),
    ("dot-backslash.txt", LIST.replace("/", "\\").replace("cat", ".\\cat").encode()),
    ("spaces.txt", LIST.replace("\n", "  \n").encode()),
    ("quoted.txt", b'"cat/0.png"\n"cat/1.png"\n"dog/0.png"\n'),
    ("single-quotes.txt", b"'cat/0.png'\n'cat/1.png'\n'dog/0.png'\n"),
    ("comments.txt", b"# my list\n" + LIST.encode()),
    ("old-mac.txt", LIST.replace("\n", "\r").encode()),
])  # fmt: skip
def test_plain_lists_are_read_as_other_tools_write_them(tmp_path, name, content):
    assert written(tmp_path, name, content) == [(path, None) for path, _ in CATS_AND_DOGS]


def test_names_with_spaces_quotes_and_backslashes_that_exist_are_taken_as_they_are(tmp_path):
    names = ["a b.png", "c\\d.png", '"e".png', "#f.png", " g.png "]
    touch(tmp_path, *names)
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    assert [os.fsdecode(path) for path in scan(tmp_path / "list.txt").paths] == names


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_a_list_of_files_that_are_not_there_is_refused_before_anything_is_done(tmp_path, name):
    (tmp_path / name).write_text("path,label\n/gone/a.png,x\n/gone/b.png,y\n")
    with pytest.raises(SourceError, match=r"line 2: no file /gone/a\.png, and none of the 2 first entries is there"):
        scan(tmp_path / name)


# --- names of classes


def test_names_that_look_the_same_are_one_class(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    manifest = scan(touch(tmp_path / "folder", f"{composed}/1.png", f"{decomposed}/2.png", "the/3.png"))
    assert manifest.classes == (composed, "the")
    touch(tmp_path, "0.png", "1.png")
    (tmp_path / "s.csv").write_text(f'path,label\n0.png,{composed}\n1.png,"{decomposed} "\n')
    assert scan(tmp_path / "s.csv").classes == (composed,)


def test_integer_labels_keep_their_value(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(12)))
    (tmp_path / "s.csv").write_text("path,label\n" + "".join(f"{i}.png,{i}\n" for i in range(12)))
    manifest = scan(tmp_path / "s.csv")
    assert manifest.labels == tuple(range(12))
    assert manifest.classes == tuple(map(str, range(12)))


# --- zips from elsewhere


def zipped(path: Path, names: list[bytes], *, system: int = 3) -> Manifest:
    """A zip whose member names are exactly these bytes, with no word on their encoding."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo("x" * len(name))
            info.create_system = system
            archive.writestr(info, b"content")
    content = path.read_bytes()
    for name in names:
        for mark in (b"PK\x03\x04", b"PK\x01\x02"):  # in the file and in the directory
            at = content.index(b"x" * len(name), content.index(mark))
            content = content[:at] + name + content[at + len(name) :]
    path.write_bytes(content)
    return scan(path)


@pytest.mark.parametrize(("name", "names"), [
    ("powershell", [b"photos\\cat\\0.png", b"photos\\dog\\11.png"]),
    ("dot-slash", [b"./cat/0.png", b"./dog/11.png"]),
    ("absolute", [b"/photos/cat/0.png", b"/photos/dog/11.png"]),
])  # fmt: skip
def test_zips_from_other_programs_keep_their_labels(tmp_path, name, names):
    manifest = zipped(tmp_path / f"{name}.zip", names, system=0)
    assert list(labels(manifest).values()) == ["cat", "dog"]
    with Archive(tmp_path / f"{name}.zip") as archive:
        assert [read_member(archive, path) for path in manifest.paths] == [b"content"] * 2


def test_names_in_a_zip_that_say_no_encoding_are_utf8_or_refused_where_they_are_classes(tmp_path):
    """zipfile reads them as code page 437, and class names come out as line drawings."""
    french, chinese = "caf\u00e9/0.png".encode(), "\u732b\u72d7/1.png".encode("gbk")
    manifest = zipped(tmp_path / "french.zip", [french, b"dog/11.png"])
    assert set(manifest.paths) == {french, b"dog/11.png"}
    assert manifest.classes == ("caf\u00e9", "dog")
    with pytest.raises(SourceError, match=r"is not named in UTF-8.*Pack it again with UTF-8 names"):
        zipped(tmp_path / "chinese.zip", [french, chinese])
    inside = b"cat/" + "\u732b\u72d7.png".encode("gbk")  # only the file's own name: no class is wrong
    assert zipped(tmp_path / "file.zip", [inside]).paths == (inside,)


def test_what_is_no_source_is_refused_with_what_is(tmp_path):
    (tmp_path / "photos.rar").write_bytes(b"Rar!\x1a\x07\x00 binary \x00\x01")
    with pytest.raises(SourceError, match=r"photos\.rar is not a source .*It can be a folder, .* or one image"):
        scan(tmp_path / "photos.rar")
    (tmp_path / "list.txt").write_text("nowhere.jpg\n")
    with pytest.raises(SourceError, match="none of the 1 first entries is there") as refused:
        scan(tmp_path / "list.txt")
    assert "It can be" not in str(refused.value)
