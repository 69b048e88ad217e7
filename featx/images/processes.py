"""Blocks of images, decoded in processes of their own: on many cores Python's lock is what threads would wait for.

A thread needs the lock some ten times for every image, each time with a system call to wake who waits for it: about
1,400 images a second, however many cores. So every worker thread has a process here that reads and decodes for it,
with nothing but Pillow and NumPy in it. What it makes comes back through a file in memory (not /dev/shm, of which a
container has 64 MB); questions and answers are lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from featx.errors import FeatxError
from featx.images.decode import quiet_pillow
from featx.images.feed import Block, BlockReader, Encoded, empty_block
from featx.images.preprocess import Preprocess
from featx.images.scan import NO_LABEL, Manifest

THREADS_SUFFICE = 3  # workers that hardly wait for each other
_START = "import sys; sys.path[:] = sys.argv[2:]; from featx.images.processes import serve; serve(int(sys.argv[1]))"


@contextlib.contextmanager
def decoding(reader: BlockReader, workers: int) -> Iterator[BlockReader]:
    """A reader for so many threads: the one given, or one that has processes."""
    if workers <= THREADS_SUFFICE or reader.fast or not sys.executable:
        yield reader
        return
    many = ReaderInProcesses(reader)
    try:
        yield many
    finally:
        many.close()


class ReaderInProcesses(BlockReader):
    """Makes the same blocks as another reader; each thread that asks for one has a process for it."""

    def __init__(self, reader: BlockReader) -> None:
        super().__init__(reader.manifest, reader.preprocess, reader.batch_size, exif=reader.exif)
        self._own = threading.local()
        self._started: list[_Process] = []
        self.close = weakref.finalize(self, _close, self._started)

    def rows(self, rows: Sequence[int], *, size: int, keep_encoded: bool = False) -> Block:
        """As of any reader.

        Raises:
            FeatxError: the process has ended.
        """
        process: _Process | None = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = _Process(self)
            self._started.append(process)
        paths = [os.fsdecode(self.manifest.paths[row]) for row in rows]
        try:
            return process.block(paths, size, keep_encoded=keep_encoded)
        except (EOFError, BrokenPipeError):
            name = self.manifest.name(rows[0])
            raise FeatxError(
                f"a process that decodes images {process.end()} while it had {name} and {len(rows) - 1} more. Is "
                f"memory short? Run the same command again to go on, with fewer --workers"
            ) from None


def _close(started: list[_Process]) -> None:
    for process in started:
        process.close()
    for process in started:
        process.end()


class _Process:
    """A process, and the file in memory that its blocks come back through."""

    def __init__(self, reader: BlockReader) -> None:
        self._side = reader.preprocess.crop
        self._tape = _file_in_memory()
        descriptor = self._tape.fileno()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._running = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(descriptor), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[descriptor],
            env=os.environ | threads,
        )
        manifest = reader.manifest
        self._waiting = {  # sent with the first question: whoever starts a process need not wait for it
            "kind": manifest.kind, "root": str(manifest.root), "preprocess": reader.preprocess.values(),
            "exif": reader.exif,
        }  # fmt: skip

    def block(self, paths: list[str], size: int, *, keep_encoded: bool) -> Block:
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        question = {"paths": paths, "size": size, "keep_encoded": keep_encoded, **self._waiting}
        self._waiting = {}
        self._running.stdin.write(json.dumps(question).encode() + b"\n")
        self._running.stdin.flush()
        line = self._running.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        answer = json.loads(line)
        block = empty_block(len(paths), size, self._side, keep_encoded=keep_encoded)
        block.read_s, block.decode_s = answer["read_s"], answer["decode_s"]
        block.reasons = {int(place): reason for place, reason in answer["reasons"].items()}
        place = 0
        for part in _parts(block, pixels=answer["pixels"]):
            place = _read_into(self._tape.fileno(), part, place)
        for index, length, pixels in answer["encoded"]:
            content = bytearray(length)
            place = _read_into(self._tape.fileno(), memoryview(content), place)
            assert block.encoded is not None
            block.encoded[index] = Encoded(content, pixels)
        return block

    def close(self) -> None:
        """Tell it that there are no more questions."""
        assert self._running.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._running.stdin.close()

    def end(self) -> str:
        """Wait for its end; how it was, in words."""
        assert self._running.stdout is not None
        self.close()
        status = self._running.wait()
        self._running.stdout.close()
        self._tape.close()
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _file_in_memory() -> Any:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("featx"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _parts(block: Block, *, pixels: bool) -> list[memoryview]:
    """The memory of what stands in the file, in this order; of the pixels only the block's own images."""
    own = block.pixels.transpose(0, 2, 3, 1)[: len(block.status)]
    arrays = [block.status, block.sha256, block.orientation, block.decoder, *([own] if pixels else [])]
    return [array.reshape(-1).data for array in arrays]


def serve(tape: int) -> None:
    """The process: answers questions on standard input until there are no more.

    Who has asked decides when to end: it finishes its blocks when it is interrupted, and this goes on with it.
    """
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    reader: BlockReader | None = None
    with quiet_pillow():
        for line in sys.stdin.buffer:
            question = json.loads(line)
            manifest = _manifest(question, reader)
            if reader is None:
                preprocess = Preprocess.from_values(question["preprocess"])
                reader = BlockReader(manifest, preprocess, question["size"], exif=question["exif"])
            reader.manifest = manifest
            rows = range(len(manifest))
            block = reader.rows(rows, size=question["size"], keep_encoded=question["keep_encoded"])
            answer = _put(block, tape)
            try:
                sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
                sys.stdout.buffer.flush()
            except BrokenPipeError:  # who has asked is no more
                os._exit(1)


def _manifest(question: dict[str, Any], reader: BlockReader | None) -> Manifest:
    kind, root = (
        (question["kind"], Path(question["root"])) if reader is None else (reader.manifest.kind, reader.manifest.root)
    )
    paths = tuple(os.fsencode(path) for path in question["paths"])
    none = (NO_LABEL,) * len(paths)
    return Manifest(kind, root, root, paths, none, (), none, ())


def _put(block: Block, tape: int) -> dict[str, Any]:
    """Write a block's arrays and files onto the tape; what the answer says of it."""
    kept = block.encoded or {}
    pixels = len(kept) < len(block.status)
    os.ftruncate(tape, 0)
    place = 0
    for part in _parts(block, pixels=pixels):
        place = _write(tape, part, place)
    for file in kept.values():
        place = _write(tape, memoryview(file.content), place)
    return {
        "read_s": block.read_s, "decode_s": block.decode_s, "reasons": block.reasons, "pixels": pixels,
        "encoded": [[place, len(file.content), file.pixels] for place, file in kept.items()],
    }  # fmt: skip


def _write(tape: int, content: memoryview, place: int) -> int:
    while content:
        done = os.pwrite(tape, content, place)
        content, place = content[done:], place + done
    return place


def _read_into(tape: int, target: memoryview, place: int) -> int:
    while target:
        done = os.preadv(tape, [target], place)
        if not done:
            raise EOFError
        target, place = target[done:], place + done
    return place
