"""Blocks of images, decoded in processes of their own: on many cores Python's lock is what threads would wait for.

A thread needs the lock some ten times for every image, each time with a system call to wake who waits for it: about
1,400 images a second, however many cores. So there are processes with nothing but Pillow and NumPy in them, one for
each block that is being made. What they make comes back through a file in memory (not /dev/shm, of which a container
has 64 MB); questions and answers are lines of JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from featx.errors import FeatxError
from featx.images.block import Block, Encoded, empty_block
from featx.images.decode import pillow_settings
from featx.images.manifest import NO_LABEL, Manifest
from featx.images.preprocess import Preprocess
from featx.images.reader import BlockReader

THREADS_SUFFICE = 3  # workers that hardly wait for each other
_LOOKED_EVERY_S = 1.0  # whether who has asked is still there
_START = (
    "import sys; sys.path[:] = sys.argv[4:]; from featx.images.decode_pool import serve; "
    "serve(*(int(number) for number in sys.argv[1:4]))"
)
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


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
    """Makes the same blocks as another reader; as many processes as threads ask at once."""

    def __init__(self, reader: BlockReader) -> None:
        super().__init__(reader.manifest, reader.preprocess, reader.batch_size, exif=reader.exif)
        self._idle: list[_Process] = []
        self._all: list[_Process] = []
        self.close = weakref.finalize(self, _end_all, self._all)

    def rows(self, rows: Sequence[int], *, size: int, keep_encoded: bool = False) -> Block:
        """As of any reader.

        Raises:
            FeatxError: the process has ended.
        """
        try:
            process = self._idle.pop()
        except IndexError:
            process = _Process(self)
            self._all.append(process)
        paths = [os.fsdecode(self.manifest.paths[row]) for row in rows]
        try:
            block = process.block(paths, size, keep_encoded=keep_encoded)
        except (EOFError, BrokenPipeError):
            end, had = process.end(), f"{self.manifest.name(rows[0])} and {len(rows) - 1} more"
            raise FeatxError(
                f"a process that decodes images {end} while it had {had}. Run the same command again to go on"
            ) from None
        except Exception:  # the process has said it, and waits for the next question
            self._idle.append(process)
            raise
        self._idle.append(process)
        return block


def _end_all(started: list[_Process]) -> None:
    """They hold nothing that is worth waiting for."""
    for process in started:
        process.kill()
    for process in started:
        process.end()


class _Process:
    """A process, and the file in memory that its blocks come back through."""

    def __init__(self, reader: BlockReader) -> None:
        self._side = reader.preprocess.crop
        self._tape = _file_in_memory()
        answers, theirs = (_above_standard(descriptor) for descriptor in os.pipe())
        self._answers = os.fdopen(answers, "rb")
        paths = [os.fsdecode(entry) for entry in sys.path if isinstance(entry, str | bytes | os.PathLike)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # It inherits the mask: who has asked finishes its blocks when it is interrupted, and this goes on with it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._running = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(self._tape.fileno()), str(theirs), str(os.getpid()), *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[self._tape.fileno(), theirs],
                env=os.environ | threads,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(theirs)
        manifest = reader.manifest
        self._waiting = {  # sent with the first question: whoever starts a process need not wait for it
            "kind": manifest.kind, "root": str(manifest.root), "preprocess": reader.preprocess.values(),
            "exif": reader.exif,
        }  # fmt: skip

    def block(self, paths: list[str], size: int, *, keep_encoded: bool) -> Block:
        assert self._running.stdin is not None
        question = {"paths": paths, "size": size, "keep_encoded": keep_encoded, **self._waiting}
        self._waiting = {}
        self._running.stdin.write(json.dumps(question).encode() + b"\n")
        self._running.stdin.flush()
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        answer = json.loads(line)
        if "error" in answer:
            raise _error_of(answer["error"])
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

    def kill(self) -> None:
        self._running.kill()

    def end(self) -> str:
        """Wait for its end; how it was, in words."""
        status = self._running.wait()
        assert self._running.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._running.stdin.close()
        self._answers.close()
        self._tape.close()
        if status == -signal.SIGKILL:
            return "was killed by signal 9 (is memory short? try fewer --workers)"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _above_standard(descriptor: int) -> int:
    """The same, not among standard input, output and errors, which a program may have closed."""
    found = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return found


def _file_in_memory() -> Any:
    if hasattr(os, "memfd_create"):
        return open(_above_standard(os.memfd_create("featx")), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _parts(block: Block, *, pixels: bool) -> list[memoryview]:
    """The memory of what stands in the file, in this order; of the pixels only the block's own images."""
    own = block.pixels.transpose(0, 2, 3, 1)[: len(block.status)]
    arrays = [block.status, block.sha256, block.orientation, block.decoder, *([own] if pixels else [])]
    return [array.reshape(-1).data for array in arrays]


def _error_of(described: dict[str, Any]) -> Exception:
    """What went wrong in a process, as it would be here."""
    if described["errno"] is not None:
        return OSError(described["errno"], described["reason"], described["file"])
    if described["kind"] == "MemoryError":
        return MemoryError(described["reason"])
    return RuntimeError(f"{described['kind']} in a process that decodes images: {described['reason']}")


def serve(tape: int, answers: int, asker: int) -> None:
    """The process: answers questions on standard input until there are no more, or nobody is there who asks.

    Args:
        tape: descriptor of the file in memory.
        answers: where they are written to.
        asker: the process that has started this one.
    """
    threading.Thread(target=_end_with, args=(asker,), daemon=True).start()
    reader: BlockReader | None = None
    with pillow_settings(), os.fdopen(answers, "wb") as told:
        for line in sys.stdin.buffer:
            try:
                question = json.loads(line)
                manifest = _manifest(question, reader)
                if reader is None:
                    preprocess = Preprocess.from_values(question["preprocess"])
                    reader = BlockReader(manifest, preprocess, question["size"], exif=question["exif"])
                reader.manifest = manifest
                rows = range(len(manifest))
                answer = _put(reader.rows(rows, size=question["size"], keep_encoded=question["keep_encoded"]), tape)
            except Exception as error:  # who has asked raises it
                known = error if isinstance(error, OSError) else None
                answer = {
                    "error": {
                        "kind": type(error).__name__,
                        "reason": str(error) if known is None else known.strerror,
                        "errno": None if known is None else known.errno,
                        "file": None if known is None or known.filename is None else os.fsdecode(known.filename),
                    }
                }
            told.write(json.dumps(answer).encode() + b"\n")
            told.flush()


def _end_with(asker: int) -> None:
    """A block may take long, and another process may have inherited the questions' pipe."""
    while os.getppid() == asker:
        time.sleep(_LOOKED_EVERY_S)
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
