"""Processes make the blocks that threads make, and their end is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from conftest import write_photo
from corpus import write_corpus

from featx.errors import FeatxError
from featx.images.decode import Status, quiet_pillow
from featx.images.feed import BlockReader
from featx.images.processes import ReaderInProcesses, decoding
from featx.images.scan import scan
from featx.networks.pooling import Pooling
from featx.recipe import plan_recipe


def recipe():
    return plan_recipe(
        backbone="alexnet-mini", layers="fc7", weights="random:0", pooling=Pooling("none"), device="cpu"
    )


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
    with quiet_pillow():
        for first in range(0, len(cases), 16):
            equal(*(reader.block(first, keep_encoded=keep_encoded) for reader in (threads, processes)))
    processes.close()


def test_a_block_of_nothing_but_files_for_the_device_comes_without_pixels(photos):
    threads, processes = readers(photos, size=10)
    equal(threads.block(0, keep_encoded=True), processes.block(0, keep_encoded=True))
    equal(threads.block(0), processes.block(0))  # what was on the tape before is gone
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
        pid = reader._own.process._running.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_dies_is_said_with_what_it_had(photos):
    _, processes = readers(photos, size=4)
    processes.block(0)
    os.kill(processes._own.process._running.pid, signal.SIGKILL)
    said = r"was killed by signal 9 while it had 04\.jpg and 3 more"
    with pytest.raises(FeatxError, match=said):
        processes.block(4)
    processes.close()


def test_an_interrupt_leaves_the_process_to_who_has_asked(photos):
    threads, processes = readers(photos, size=4)
    processes.block(0)
    for name in (signal.SIGINT, signal.SIGTERM):
        os.kill(processes._own.process._running.pid, name)
    equal(threads.block(4), processes.block(4))
    processes.close()


_ASK = """
import os, sys
sys.path[:] = sys.argv[2:]
from featx.images.feed import BlockReader
from featx.images.processes import ReaderInProcesses
from featx.images.scan import scan
from featx.images.preprocess import Preprocess
how = Preprocess(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
reader = ReaderInProcesses(BlockReader(scan(sys.argv[1]), how, 4))
reader.block(0)
print(reader._own.process._running.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_processes_end_when_who_has_asked_is_killed(photos):
    asking = subprocess.run(
        [sys.executable, "-c", _ASK, str(photos), *sys.path], stdout=subprocess.PIPE, text=True, check=False
    )
    pid = int(asking.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("it goes on")
