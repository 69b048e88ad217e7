"""Processes make the blocks that threads make, and their end is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from conftest import write_photo
from corpus import write_corpus
from PIL import Image

from featx.errors import FeatxError
from featx.extraction.recipe import Recipe
from featx.images.decode import pillow_settings
from featx.images.processes.pool import ReaderInProcesses, _Process, decoding
from featx.images.reader import BlockReader
from featx.images.sources.scan import scan
from featx.runtime.threads import run_workers
from featx.status import Status


def recipe():
    return Recipe.plan(backbone="alexnet-mini", layers="fc7", weights="random:0", pool="none", device="cpu")


def readers(source, size=16, **options):
    reader = BlockReader(scan(source), recipe().preprocess, size, **options)
    return reader, ReaderInProcesses(reader)


@pytest.fixture
def photos(tmp_path):
    for index in range(10):
        write_photo(tmp_path / "photos" / f"{index:02d}.jpg", index, (90 + index, 80))
    return tmp_path / "photos"


def equal(one, other):
    for name in ("first", "reasons"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("pixels", "status", "sha256", "orientation", "decoder"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.pixels.strides == other.pixels.strides
    kept = [
        None if block.encoded is None else {place: (bytes(f.content), f.pixels) for place, f in block.encoded.items()}
        for block in (one, other)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("keep_encoded", [False, True])
def test_blocks_of_the_strangest_files_are_those_of_threads(tmp_path, keep_encoded, exif):
    cases = write_corpus(tmp_path / "corpus")
    threads, processes = readers(tmp_path / "corpus", exif=exif)
    with pillow_settings():
        for first in range(0, len(cases), 16):
            equal(*(reader.block(first, keep_encoded=keep_encoded) for reader in (threads, processes)))
    processes.close()


def test_a_block_of_nothing_but_files_for_the_device_comes_without_pixels(photos):
    threads, processes = readers(photos, size=10)
    equal(threads.block(0, keep_encoded=True), processes.block(0, keep_encoded=True))
    equal(threads.block(0), processes.block(0))
    size = os.fstat(processes._all[0]._tape.fileno()).st_size
    equal(threads.rows([3], size=1), processes.rows([3], size=1))
    assert os.fstat(processes._all[0]._tape.fileno()).st_size < size / 5, "a large block's memory is given back"
    rows = [7, 2, 2, 9]
    equal(threads.rows(rows, size=5), processes.rows(rows, size=5))
    processes.close()


def test_images_in_a_zip_are_read_from_it(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for photo in sorted(photos.iterdir()):
            archive.write(photo, f"class/{photo.name}")
        archive.writestr("class/broken.jpg", b"\xff\xd8 nothing")
    threads, processes = readers(tmp_path / "photos.zip", size=4)
    for first in (0, 4, 8):
        equal(threads.block(first), processes.block(first))
    assert processes.block(8).status[2] == Status.NOT_AN_IMAGE
    processes.close()


def test_few_workers_need_no_processes(photos):
    threads, _ = readers(photos)
    with decoding(threads, 3) as reader:
        assert reader is threads
    with decoding(threads, 4) as reader:
        assert isinstance(reader, ReaderInProcesses)
        reader.block(0)
        pid = reader._all[-1]._running.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_dies_is_said_with_what_it_had(photos):
    _, processes = readers(photos, size=4)
    processes.block(0)
    os.kill(processes._all[-1]._running.pid, signal.SIGKILL)
    said = r"was killed by signal 9 \(is memory short.*\) while it had 04\.jpg and 3 more"
    with pytest.raises(FeatxError, match=said):
        processes.block(4)
    processes.close()


def test_a_process_that_stops_is_replaced_and_the_image_it_had_is_marked(photos, monkeypatch):
    monkeypatch.setattr("featx.images.processes.pool._GRACE_S", 1.0)
    threads, processes = readers(photos, size=4, timeout_s=0.5)
    expected = threads.block(4)
    processes.block(0)
    stopped = processes._all[-1]._running.pid
    os.kill(stopped, signal.SIGSTOP)
    block = processes.block(4)
    assert Status(block.status[0]) == Status.TOO_SLOW
    assert "not decoded within 0.5 s" in block.reasons[0]
    assert (block.status[1:4] == Status.DONE).all()
    np.testing.assert_array_equal(block.pixels[1:4], expected.pixels[1:4])
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
    processes.close()


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupt_leaves_the_process_to_who_has_asked(photos, begun):
    """From its first moment on, and whatever it has loaded by then."""
    threads, processes = readers(photos, size=4)
    for _ in range(8):
        process = _Process(processes)
        if begun:
            process.block(["00.jpg"], 1, keep_encoded=False)
        for name in (signal.SIGINT, signal.SIGTERM):
            os.kill(process._running.pid, name)
        processes._idle.append(process)
        processes._all.append(process)
        equal(threads.block(4), processes.block(4))
    processes.close()


def test_closing_waits_neither_for_a_block_nor_for_a_fork(photos):
    _, processes = readers(photos, size=4)
    processes.block(0)
    process = processes._idle.pop()
    os.kill(process._running.pid, signal.SIGSTOP)  # as one that has much to do
    fork = subprocess.Popen(["sleep", "60"], pass_fds=[process._running.stdin.fileno()])
    started = time.monotonic()
    processes.close()
    assert time.monotonic() - started < 20
    fork.kill()
    fork.wait()


def test_threads_that_come_and_go_share_processes(photos):
    threads, _ = readers(photos, size=2)
    with decoding(threads, 4) as reader:
        for _ in range(3):
            run_workers(range(0, 10, 2), 4, reader.block, threading.Event())
        assert len(reader._all) <= 4


def test_what_goes_wrong_in_a_process_is_raised_here(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(photos / "00.jpg", "class/00.jpg")
    _, processes = readers(tmp_path / "photos.zip", size=4)
    (tmp_path / "photos.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"photos\.zip"):
        processes.block(0)
    processes.close()


_CLOSED = """
import os, sys
for number in (0, 1):
    os.close(number)
sys.path[:0] = [None, 7]
from featx.images.reader import BlockReader
from featx.images.processes.pool import ReaderInProcesses
from featx.images.preprocess import Preprocess
from featx.images.sources.scan import scan
how = Preprocess(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
reader = ReaderInProcesses(BlockReader(scan(sys.argv[1]), how, 4))
assert not reader.block(0).reasons
reader.close()
"""


def test_a_program_without_standard_input_and_output_has_processes_too(photos):
    program = [sys.executable, "-c", _CLOSED, str(photos)]
    subprocess.run(program, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


@pytest.mark.parametrize("limit", [3000, None])
def test_what_a_program_has_set_up_changes_nothing(photos, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    threads, processes = readers(photos)
    assert not threads.block(0).reasons
    equal(threads.block(0), processes.block(0))
    processes.close()


_ASK = """
import os, sys
sys.path[:] = sys.argv[2:]
from featx.images.reader import BlockReader
from featx.images.processes.pool import ReaderInProcesses
from featx.images.sources.scan import scan
from featx.images.preprocess import Preprocess
how = Preprocess(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
reader = ReaderInProcesses(BlockReader(scan(sys.argv[1]), how, 4))
reader.block(0)
if "forked" in sys.argv[1]:
    import subprocess
    pipe = reader._all[0]._running.stdin.fileno()
    subprocess.Popen(["sleep", "20"], pass_fds=[pipe], stdout=subprocess.DEVNULL)
print(reader._all[0]._running.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("name", ["alone", "forked"])
def test_processes_end_when_who_has_asked_is_killed(photos, name):
    """Also where a fork of it lives on that holds the pipe."""
    photos = photos.rename(photos.with_name(name))
    asking = subprocess.run(
        [sys.executable, "-c", _ASK, str(photos), *sys.path], stdout=subprocess.PIPE, text=True, check=False
    )
    pid = int(asking.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("it goes on")
