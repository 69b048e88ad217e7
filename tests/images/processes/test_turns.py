"""Large images take turns, over threads and over processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from featx.extraction.recipe import Recipe
from featx.images.decode import pillow_settings
from featx.images.processes import turns
from featx.images.processes.pool import ReaderInProcesses
from featx.images.processes.turns import LARGE_BYTES, Turns, turns_for
from featx.images.reader import BlockReader
from featx.images.sources.scan import scan
from featx.runtime.threads import run_workers
from featx.status import Status

# A process that takes one turn, says when it has it, and keeps it until its standard input ends.
HOLDER = (
    "import sys; from featx.images.processes.turns import Turns, LARGE_BYTES\n"
    "with Turns(int(sys.argv[2]), int(sys.argv[1])).image() as need:\n"
    "    need(LARGE_BYTES); print('has it', flush=True); sys.stdin.read()"
)


def holder(descriptor: int, count: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(descriptor), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[descriptor],
    )


@pytest.mark.parametrize("count", [1, 2])
def test_so_many_threads_at_once_have_a_turn(count):
    taken, most, lock = [0], [0], threading.Lock()
    shared = Turns(count)

    def work(_: int) -> None:
        with shared.image() as need:
            need(10)
            need(LARGE_BYTES)
            need(LARGE_BYTES)  # the same image says it again: the file, then its pixels
            with lock:
                taken[0] += 1
                most[0] = max(most[0], taken[0])
            time.sleep(0.01)
            with lock:
                taken[0] -= 1

    run_workers(range(12), 4, work, threading.Event())
    assert most[0] == count


def test_small_images_wait_for_nobody():
    shared = Turns(1)
    with shared.image() as need, shared.image() as other:
        need(LARGE_BYTES)
        other(LARGE_BYTES - 1)


def test_processes_share_turns_and_the_dead_give_theirs_back():
    with tempfile.TemporaryFile() as file:
        first, second = holder(file.fileno(), 2), holder(file.fileno(), 2)
        assert first.stdout.readline() == second.stdout.readline() == b"has it\n"
        waits = []

        def waiting() -> None:
            waits.append(1)
            if len(waits) == 3:
                first.kill()

        with Turns(2, file.fileno(), waiting).image() as need:
            need(LARGE_BYTES)
        assert len(waits) >= 3
        for process in (first, second):
            process.kill()
            process.communicate()


def test_as_many_as_half_of_the_memory_holds_but_one_always(monkeypatch):
    for free, expected in [(1 << 28, 1), (16 << 30, 4), (1 << 40, 8)]:
        monkeypatch.setattr(turns, "free_main_memory", lambda free=free: free)
        assert turns_for(8) == expected


def preprocess():
    return Recipe.plan(backbone="alexnet-mini", layers="fc7", weights="random:0", device="cpu").preprocess


@pytest.fixture
def large(tmp_path):
    """Four grey pictures of 18 megapixels, which take a turn each, and a small one."""
    folder = tmp_path / "large"
    folder.mkdir()
    for index in range(4):
        Image.new("L", (4500, 4000), 10 * index).save(folder / f"{index}.png", compress_level=1)
    Image.new("RGB", (90, 80), (1, 2, 3)).save(folder / "small.png")
    return folder


def test_processes_that_wait_for_a_turn_are_not_taken_for_stuck(large):
    manifest = scan(large)
    with pillow_settings():
        expected = [BlockReader(manifest, preprocess(), 1).block(row) for row in range(5)]
    reader = ReaderInProcesses(BlockReader(manifest, preprocess(), 1))
    together = threading.Barrier(5)  # each has a process before any asks a second time

    def start(_: int) -> None:
        together.wait()
        reader.block(4)

    run_workers(range(5), 5, start, threading.Event())
    for process in reader._all:  # started: from here on silence is not the start of an interpreter
        process._patience_s = 2.0
    taken = holder(reader._turns_file.fileno(), 1)  # the only turn, for longer than they may be silent
    assert taken.stdout.readline() == b"has it\n"
    threading.Timer(4.0, taken.kill).start()
    blocks = {}
    run_workers(range(5), 5, lambda row: blocks.update({row: reader.block(row)}), threading.Event())
    taken.communicate()
    reader.close()
    for row in range(5):
        assert Status(blocks[row].status[0]) == Status.DONE, blocks[row].reasons
        np.testing.assert_array_equal(blocks[row].pixels, expected[row].pixels)


class Told(Turns):
    def __init__(self) -> None:
        super().__init__(1)
        self.sizes: list[int] = []

    def _take(self) -> int:
        self.sizes.append(1)
        return super()._take()


@pytest.mark.parametrize("zipped", [False, True])
def test_what_is_large_takes_a_turn_wherever_it_lies(large, tmp_path, zipped):
    source = large
    if zipped:
        source = tmp_path / "large.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in sorted(large.iterdir()):
                archive.write(path, path.name)
    told = Told()
    with pillow_settings():
        block = BlockReader(scan(source), preprocess(), 5, turns=told).block(0)
    assert (block.status == Status.DONE).all()
    assert len(told.sizes) == 4
    assert told._free.acquire(blocking=False), "a turn was not given back"


def test_a_large_file_takes_a_turn_before_it_is_read(tmp_path):
    (tmp_path / "photos").mkdir()
    with (tmp_path / "photos" / "a.jpg").open("wb") as file:
        file.write(b"\xff\xd8")
        os.truncate(file.fileno(), LARGE_BYTES)
    told = Told()
    block = BlockReader(scan(tmp_path / "photos"), preprocess(), 1, turns=told).block(0)
    assert block.status[0] != Status.DONE
    assert told.sizes == [1]


def test_a_stopped_process_does_not_keep_its_turn_for_ever(large):
    reader = ReaderInProcesses(BlockReader(scan(large), preprocess(), 1))
    reader.block(4)
    reader._all[-1]._patience_s = 2.0
    stopped = reader._all[-1]._running.pid
    os.kill(stopped, signal.SIGSTOP)
    block = reader.block(0)
    assert Status(block.status[0]) == Status.TOO_SLOW
    assert Status(reader.block(1).status[0]) == Status.DONE
    reader.close()
