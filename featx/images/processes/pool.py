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
import select
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from featx.errors import FeatxError
from featx.images.block import Block, Encoded, empty_block, parts_of
from featx.images.reader import BlockReader
from featx.status import Status

THREADS_SUFFICE = 3  # workers that hardly wait for each other
_GRACE_S = 15.0  # for a process beyond the time of one image, after which it is taken for stuck
_PIPE_BYTES = 1 << 16
WAITS = b"waits"
_START = (
    "import sys; sys.path[:] = sys.argv[4:]; from featx.images.processes.worker import answer_questions; "
    "answer_questions(*(int(number) for number in sys.argv[1:4]))"
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
        super().__init__(
            reader.manifest, reader.preprocess, reader.batch_size, exif=reader.exif, timeout_s=reader.timeout_s,
            turns=reader.turns,
        )  # fmt: skip
        self._turns_file = _file_in_memory()  # on whose bytes the processes lock their turns
        self._idle: list[_Process] = []
        self._all: list[_Process] = []
        self.close = weakref.finalize(self, _end_all, self._all, self._turns_file)

    def rows(self, rows: Sequence[int], *, size: int, keep_encoded: bool = False) -> Block:
        """As of any reader.

        Raises:
            FeatxError: the process has ended.
        """
        paths = [os.fsdecode(self.manifest.paths[row]) for row in rows]
        stuck: list[int] = []
        while True:
            try:
                block = self._ask(["" if i in stuck else p for i, p in enumerate(paths)], rows, size, keep_encoded)
            except Stuck as found:
                if found.place in stuck or found.place >= len(paths):
                    first = self.manifest.name(rows[0])
                    raise FeatxError(f"processes that decode images do not answer (block of {first})") from None
                stuck.append(found.place)
                continue
            for place in stuck:
                block.status[place] = Status.TOO_SLOW
                block.reasons[place] = f"not decoded within {self.timeout_s:g} s (--image-timeout)"
            return block

    def _ask(self, paths: list[str], rows: Sequence[int], size: int, keep_encoded: bool) -> Block:
        try:
            process = self._idle.pop()
        except IndexError:
            process = _Process(self)
            self._all.append(process)
        try:
            block = process.block(paths, size, keep_encoded=keep_encoded)
        except Stuck:
            process.kill()
            process.end()
            raise
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


def _end_all(started: list[_Process], turns_file: Any) -> None:
    """They hold nothing that is worth waiting for."""
    turns_file.close()
    for process in started:
        process.kill()
    for process in started:
        process.end()


class Stuck(Exception):
    """A process has not come back from an image."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class _Process:
    """A process, and the file in memory that its blocks come back through."""

    def __init__(self, reader: ReaderInProcesses) -> None:
        self._shape = reader.preprocess.shape
        self._tape = _file_in_memory()
        self._answers, theirs = (_above_standard(descriptor) for descriptor in os.pipe())
        self._read = b""  # of the answers, so far
        turns = reader._turns_file.fileno()
        paths = [os.fsdecode(entry) for entry in sys.path if isinstance(entry, str | bytes | os.PathLike)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # It inherits the mask: who has asked finishes its blocks when it is interrupted, and this goes on with it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._running = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(self._tape.fileno()), str(theirs), str(os.getpid()), *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[self._tape.fileno(), theirs, turns],
                env=os.environ | threads,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(theirs)
        manifest = reader.manifest
        self._waiting = {  # sent with the first question: whoever starts a process need not wait for it
            "kind": manifest.kind, "root": str(manifest.root), "preprocess": reader.preprocess.values(),
            "exif": reader.exif, "timeout_s": reader.timeout_s, "turns": reader.turns.count, "turns_file": turns,
        }  # fmt: skip
        self._patience_s = reader.timeout_s + _GRACE_S

    def block(self, paths: list[str], size: int, *, keep_encoded: bool) -> Block:
        assert self._running.stdin is not None
        question = {"paths": paths, "size": size, "keep_encoded": keep_encoded, **self._waiting}
        self._waiting = {}
        self._running.stdin.write(json.dumps(question).encode() + b"\n")
        self._running.stdin.flush()
        line = self._answer()
        if not line.endswith(b"\n"):
            raise EOFError
        answer = json.loads(line)
        if "error" in answer:
            raise _error_of(answer["error"])
        block = empty_block(len(paths), size, self._shape, keep_encoded=keep_encoded)
        block.read_s, block.decode_s = answer["read_s"], answer["decode_s"]
        block.reasons = {int(place): reason for place, reason in answer["reasons"].items()}
        place = 0
        for part in parts_of(block, pixels=answer["pixels"]):
            place = _read_into(self._tape.fileno(), part, place)
        for index, length, pixels in answer["encoded"]:
            content = bytearray(length)
            place = _read_into(self._tape.fileno(), memoryview(content), place)
            assert block.encoded is not None
            block.encoded[index] = Encoded(content, pixels)
        return block

    def _answer(self) -> bytes:
        """The answer, which is a line; before it comes an empty line for each image that is done, WAITS for a turn.

        Raises:
            Stuck: none came for longer than one image may take.
        """
        done = 0
        while True:
            line, newline, rest = self._read.partition(b"\n")
            if not newline:
                if not select.select([self._answers], [], [], self._patience_s)[0]:
                    raise Stuck(done)
                more = os.read(self._answers, _PIPE_BYTES)
                if not more:
                    return self._read
                self._read += more
                continue
            self._read = rest
            if line == WAITS:
                continue
            if line:
                return line + newline
            done += 1

    def kill(self) -> None:
        self._running.kill()

    def end(self) -> str:
        """Wait for its end; how it was, in words."""
        status = self._running.wait()
        assert self._running.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._running.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1
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


def _error_of(described: dict[str, Any]) -> Exception:
    """What went wrong in a process, as it would be here."""
    if described["errno"] is not None:
        return OSError(described["errno"], described["reason"], described["file"])
    if described["kind"] == "MemoryError":
        return MemoryError(described["reason"])
    return RuntimeError(f"{described['kind']} in a process that decodes images: {described['reason']}")


def _read_into(tape: int, target: memoryview, place: int) -> int:
    while target:
        done = os.preadv(tape, [target], place)
        if not done:
            raise EOFError
        target, place = target[done:], place + done
    return place
