"""Images at addresses give the rows of a folder of the same files, through a network that fails."""

from __future__ import annotations

import http.server
import shutil
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo

import featx
from featx.errors import PlanMismatch, SourceError
from featx.images.bad_image import BadImage
from featx.images.sources import remote
from featx.images.sources.scan import scan
from featx.status import Status

CONFIG = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu", max_bad=1.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(7):
        write_photo(folder / "ab"[number % 2] / f"{number}.jpg", number)
    (folder / "b" / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.h5"
    featx.extract_features(photos, path, CONFIG)
    return featx.open_features(path)


@pytest.fixture
def server(photos):
    """A web server that fails twice before it gives a file, forbids one, and never gives another; what it was asked."""
    asked: Counter[str] = Counter()

    class Flaky(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, directory=str(photos), **named)

        def do_GET(self):
            asked[self.path] += 1
            if self.path.endswith("/secret.jpg"):
                self.send_error(403)
            elif self.path.endswith("/4.jpg") and asked[self.path] == 3:  # ends in the middle
                content = (photos / self.path.lstrip("/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
            elif self.path.endswith("/never.jpg") or (asked[self.path] <= 2 and self.path.endswith(".jpg")):
                self.send_error(503)
            else:
                super().do_GET()

        def do_HEAD(self):
            if self.path.endswith("/never.jpg"):
                self.send_error(503)
            else:
                super().do_HEAD()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}", asked
        web.shutdown()


def test_below_an_address_are_the_rows_of_the_folder(photos, expected, tmp_path):
    source = f"file://{photos}"
    featx.extract_features(source, tmp_path / "f.h5", CONFIG)
    found = featx.open_features(tmp_path / "f.h5")
    assert (found.paths, found.classes, found.source_kind) == (expected.paths, expected.classes, "remote")
    np.testing.assert_array_equal(found["fc7"], expected["fc7"])
    np.testing.assert_array_equal(found.sha256, expected.sha256)
    assert found.provenance["source"]["path"] == source
    assert featx.verify_file(found.path, featx.VerifyConfig(all=True)).passed
    before = found.path.stat().st_mtime_ns
    featx.extract_features(source, tmp_path / "f.h5", CONFIG)
    assert found.path.stat().st_mtime_ns == before
    assert featx.check_source(source).images == 8


def test_an_object_that_was_replaced_is_noticed(photos, tmp_path):
    for path in photos.rglob("*.jpg"):
        target = tmp_path / "copy" / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    source = f"file://{tmp_path}/copy"
    featx.extract_features(source, tmp_path / "f.h5", CONFIG)
    write_photo(tmp_path / "copy" / "a" / "0.jpg", 99)
    with pytest.raises(PlanMismatch, match=r"a/0\.jpg"):
        featx.extract_features(source, tmp_path / "f.h5", CONFIG)


def test_a_list_of_addresses_survives_a_network_that_fails(photos, expected, server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    address, asked = server
    names = ["a/0.jpg", "b/1.jpg", "b/never.jpg", "a/gone.jpg", "a/secret.jpg"]
    (tmp_path / "list.txt").write_text(
        "\n".join([f"{address}/{name}" for name in names] + [str(photos / "a" / "2.jpg")])
    )
    featx.extract_features(tmp_path / "list.txt", tmp_path / "f.h5", CONFIG)
    found = featx.open_features(tmp_path / "f.h5")
    rows = [expected.paths.index(name) for name in ("a/0.jpg", "b/1.jpg", "a/2.jpg")]
    np.testing.assert_array_equal(found["fc7"][[0, 1, 5]], expected["fc7"][rows])
    assert found.status.tolist() == [
        Status.DONE,
        Status.DONE,
        Status.UNREADABLE,
        Status.MISSING,
        Status.UNREADABLE,
        Status.DONE,
    ]
    reasons = {failure.path: failure.reason for failure in found.failures()}
    assert "503" in reasons[f"{address}/b/never.jpg"]
    assert reasons[f"{address}/b/never.jpg"].endswith("(4 attempts)")
    assert reasons[f"{address}/a/gone.jpg"] == "no such object"
    assert reasons[f"{address}/a/secret.jpg"] == "access denied: HTTP 403 Forbidden"
    assert asked["/a/0.jpg"] >= 3
    assert (asked["/a/secret.jpg"], asked["/a/gone.jpg"]) == (
        1,
        3,
    )  # what is forbidden or gone is not asked for again
    assert featx.verify_file(found.path).passed


def test_a_download_that_breaks_off_is_tried_again(photos, server, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)
    address, asked = server
    assert remote.fetch(f"{address}/a/4.jpg") == (photos / "a" / "4.jpg").read_bytes()
    assert asked["/a/4.jpg"] == 4


def test_no_more_is_fetched_than_is_allowed(photos, server, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)
    address, _ = server
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 300)
    for url in (f"{address}/a/0.jpg", f"file://{photos}/a/0.jpg"):
        with pytest.raises(BadImage) as refused:
            remote.fetch(url)
        assert refused.value.status == Status.TOO_LARGE


def test_the_waits_between_attempts_grow(server, monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    with pytest.raises(BadImage, match=r"503.*\(4 attempts\)"):
        remote.fetch(f"{server[0]}/b/never.jpg")
    assert waits == [0.5, 1.0, 2.0]


def test_a_tar_at_an_address_is_read_in_place(photos, expected, tmp_path):
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        archive.add(photos, ".")
    featx.extract_features(f"file://{tmp_path}/p.tar", tmp_path / "f.h5", CONFIG)
    found = featx.open_features(tmp_path / "f.h5")
    assert found.paths == expected.paths
    np.testing.assert_array_equal(found["fc7"], expected["fc7"])


def test_addresses_that_cannot_be_read_say_why(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="nowhere:// is no file system that is known"):
        scan("nowhere://bucket/photos")
    with pytest.raises(SourceError, match=r"no images in|cannot be listed"):
        scan(f"file://{tmp_path}/no/such/folder")
    for ending in ("txt", "csv", "zip", "tar"):
        with pytest.raises(SourceError, match=r"no such object|cannot be read"):
            scan(f"file://{tmp_path}/none.{ending}")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SourceError, match="gs:// needs more than is installed: pip install gcsfs"):
        scan("gs://bucket/photos")


class Archives(http.server.SimpleHTTPRequestHandler):
    """Gives parts of files, and fails every third time."""

    folder, asked = "", 0

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, directory=self.folder, **named)

    def do_GET(self):
        Archives.asked += 1
        content = (Path(self.folder) / self.path.lstrip("/")).read_bytes()
        if Archives.asked % 3 == 0:
            self.send_error(503)
            return
        said, code = self.headers.get("Range"), 200
        if said:
            first, _, last = said.removeprefix("bytes=").partition("-")
            content, code = content[int(first) : int(last) + 1], 206
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def archives(photos, expected, tmp_path, monkeypatch):
    """A web server of the photos, and of a tar, a zip and lists of them."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)
    folder = tmp_path / "web"
    shutil.copytree(photos, folder / "photos")
    with tarfile.open(folder / "p.tar", "w") as archive:
        archive.add(photos, ".")
    with zipfile.ZipFile(folder / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in expected.paths:
            archive.write(photos / path, path)
    (folder / "lists").mkdir()
    (folder / "lists" / "p.csv").write_text(
        "path,label,split\n"
        + "".join(f"../photos/{p},{p[0]},{'test' if p < 'b' else 'train'}\n" for p in expected.paths)
    )
    (folder / "lists" / "p.txt").write_text(
        "".join(f"..\\photos\\{p} {p[0]}\n".replace("/", "\\") for p in expected.paths)
    )
    Archives.folder, Archives.asked = str(folder), 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Archives) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.mark.parametrize("name", ["p.tar", "p.zip", "lists/p.csv", "lists/p.txt"])
def test_archives_and_lists_at_an_address_are_read_in_place(archives, expected, tmp_path, name):
    out = tmp_path / "f.h5"
    featx.extract_features(f"{archives}/{name}", out, CONFIG)
    found = featx.open_features(out)
    for field in ("fc7",):
        np.testing.assert_array_equal(found[field], expected[field])
    np.testing.assert_array_equal(found.sha256, expected.sha256)
    np.testing.assert_array_equal(found.status, expected.status)
    assert [found.classes[k] for k in found.labels] == [path[0] for path in expected.paths]
    if name.endswith("csv"):
        assert [found.splits[k] for k in found.split_of] == ["test" if p < "b" else "train" for p in expected.paths]
    assert featx.verify_file(out, featx.VerifyConfig(all=True)).passed
    before = out.stat().st_mtime_ns
    featx.extract_features(f"{archives}/{name}", out, CONFIG)
    assert out.stat().st_mtime_ns == before


def test_a_list_at_an_address_names_no_file_of_this_machine(archives, photos, tmp_path):
    (tmp_path / "web" / "evil.txt").write_text(
        f"photos/a/0.jpg\n{photos}/a/0.jpg\n../../../../{photos}/a/0.jpg\nfile://{photos}/a/0.jpg\n"
    )
    featx.extract_features(f"{archives}/evil.txt", tmp_path / "f.h5", CONFIG)
    assert featx.open_features(tmp_path / "f.h5").status.tolist() == [
        Status.DONE,
        Status.UNREADABLE,
        Status.UNREADABLE,
        Status.UNREADABLE,
    ]
    assert remote.joined("http://host/lists", "../../../x.jpg") == "http://host/x.jpg"


def test_a_listing_that_fails_is_asked_for_again(photos, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)
    system, _ = remote.split_url(f"file://{photos}")
    find, asked = type(system).find, []

    def flaky(self, *arguments, **named):
        asked.append(1)
        if len(asked) < 3:
            raise ConnectionError("reset")
        return find(self, *arguments, **named)

    monkeypatch.setattr(type(system), "find", flaky)
    assert len(scan(f"file://{photos}")) == 8
    monkeypatch.setattr(type(system), "find", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("reset")))
    with pytest.raises(SourceError, match=r"cannot be listed: ConnectionError: reset \(4 attempts\)"):
        scan(f"file://{photos}")


@pytest.mark.slow
def test_an_s3_server_gives_the_rows_of_the_folder(photos, expected, tmp_path, monkeypatch):
    moto = pytest.importorskip("moto.server", reason="pip install 'moto[server]' s3fs")
    s3fs = pytest.importorskip("s3fs")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    web = moto.ThreadedMotoServer(port=0, verbose=False)
    web.start()
    try:
        __, port = web.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = s3fs.S3FileSystem()
        bucket.mkdir("stimuli")
        bucket.put(str(photos), "stimuli/set1", recursive=True)
        featx.extract_features("s3://stimuli/set1", tmp_path / "f.h5", CONFIG)
        found = featx.open_features(tmp_path / "f.h5")
        assert found.paths == expected.paths
        np.testing.assert_array_equal(found["fc7"], expected["fc7"])
        assert featx.verify_file(found.path).passed
        with tarfile.open(tmp_path / "s-0.tar", "w") as archive:
            archive.add(photos, ".")
        bucket.put(str(tmp_path / "s-0.tar"), "stimuli/shards/s-0.tar")
        featx.extract_features("s3://stimuli/shards/s-{0..0}.tar", tmp_path / "g.h5", CONFIG)
        np.testing.assert_array_equal(featx.open_features(tmp_path / "g.h5")["fc7"], expected["fc7"])
        with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
            for path in expected.paths:
                archive.write(photos / path, path)
        (tmp_path / "s.csv").write_text("path,label\n" + "".join(f"../set1/{path},x\n" for path in expected.paths))
        for name in ("s.zip", "s.csv"):
            bucket.put(str(tmp_path / name), f"stimuli/shards/{name}")
            featx.extract_features(f"s3://stimuli/shards/{name}", tmp_path / f"{name}.h5", CONFIG)
            np.testing.assert_array_equal(featx.open_features(tmp_path / f"{name}.h5")["fc7"], expected["fc7"])
    finally:
        web.stop()
