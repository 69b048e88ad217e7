"""Several processes fill one features file: each takes the next block that none has taken.

They are started by torchrun, or by anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and talk
through torch.distributed's key-value store alone: numbers of blocks, never features. The first process makes the
file and finishes it. It knows by the locks on the file who is still at work: the system takes them from the dead,
whose blocks it does again. If it dies itself, the others stop, and the same command resumes.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from featx.distributed.shards import parse_shard
from featx.errors import Interrupted, UsageError
from featx.runtime.environment import Environment, read_environment
from featx.runtime.signals import Stop

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # torch exports it by a star


Answer = TypeVar("Answer")
POLL_S = 0.05
PATIENCE_S, LINGER_S = 600.0, 5.0
CONNECT_PATIENCE, ANSWER_PATIENCE = timedelta(seconds=2), timedelta(minutes=10)
_GROUPS = itertools.count()
_ALL = 1 << 48  # more blocks than any file has
# File systems whose clients write whole pages back: two machines would overwrite each other's rows.
_NOT_COHERENT = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs"}


class WorkQueue:
    """This process among those that fill a file together.

    Attributes:
        rank: 0 for the first, which makes the file, finishes it and speaks for all.
        count: how many there are.
    """

    def __init__(self, environment: Environment) -> None:
        self.rank, self.count = environment.rank, environment.world_size
        self._environment = environment
        self._address = f"{environment.master_addr}:{environment.master_port}"
        self._hosts = environment.is_first and not environment.has_agent_store
        self._number = next(_GROUPS)  # several files one after the other: each has its own keys
        self._connected: Store | None = None
        self._reported = 0
        self._lock = threading.Lock()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def open(self, finished: Callable[[], bool]) -> bool:
        """Meet the others: the first process opens the store, unless torchrun has, and the others look for it.

        Args:
            finished: whether the file is there already; asked while there is nobody to be found.

        Returns:
            False if it is: there is nothing to do.

        Raises:
            Interrupted: nobody was there for ten minutes.
        """
        until = time.monotonic() + PATIENCE_S
        while not self._connect():
            if finished():
                return False
            if time.monotonic() > until:
                raise Interrupted(f"process {self.rank} of {self.count} found no others at {self._address}")
            time.sleep(POLL_S)
        return True

    def _connect(self) -> bool:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch exports it by a star

        address, port = self._environment.master_addr, self._environment.master_port
        try:
            store = TCPStore(address, port, None, self._hosts, CONNECT_PATIENCE, wait_for_workers=False)
        except RuntimeError as error:
            if self._hosts:
                raise Interrupted(f"cannot listen at {self._address}: {' '.join(str(error).split())[:200]}") from None
            return False
        store.set_timeout(ANSWER_PATIENCE)
        self._connected = PrefixStore(f"featx/{self._environment.restart_count}/{self._number}", store)
        return True

    @property
    def _store(self) -> Store:
        assert self._connected is not None, "open first"
        return self._connected

    def close(self) -> None:
        """Leave; the first process stays for the others' last questions if the store is its own."""
        if self._connected is None:
            return
        with contextlib.suppress(RuntimeError):
            if not self.is_first:
                self._store.add("gone", 1)
            until = time.monotonic() + LINGER_S
            while self._hosts and self._store.add("gone", 0) < self.count - 1 and time.monotonic() < until:
                time.sleep(POLL_S)
        self._connected = None

    def announce(self, fingerprint: str, blocks: Sequence[int]) -> None:
        """The first process: the file is there, and these blocks of it are to be done."""
        self._ask(lambda: self._store.set("plan", f"{fingerprint} {_as_text(blocks)}"))

    def listen(self) -> tuple[str, list[int]]:
        """The other processes: wait for the file to be made; its fingerprint and the blocks to be done."""
        self._await("plan", None)
        fingerprint, _, blocks = self._ask(lambda: self._store.get("plan")).decode().partition(" ")
        return fingerprint, _from_text(blocks)

    def claim(self, blocks: Sequence[int]) -> Iterator[int]:
        """Blocks that no other process has; for one thread at a time."""
        while (place := self._ask(lambda: self._store.add("claimed", 1)) - 1) < len(blocks):
            yield blocks[place]

    def drain(self) -> None:
        """No process shall begin another block."""
        self._ask(lambda: self._store.add("claimed", _ALL))

    def advance(self, images: int) -> int:
        """Count images; how many the first process has to report, those of the others included."""
        done = self._ask(lambda: self._store.add("done", images))
        with self._lock:
            new, self._reported = max(0, done - self._reported), max(done, self._reported)
        return new

    def check_on_others(self) -> None:
        """Raise what another process has told with `fail`.

        Raises:
            Interrupted: with its reason.
        """
        if self._ask(lambda: self._store.check(["failed"])):
            raise Interrupted(self._ask(lambda: self._store.get("failed")).decode(errors="replace"))

    def conclude(self) -> None:
        """The first process: the file is finished."""
        self._ask(lambda: self._store.set("finished", "yes"))

    def wait_for_the_end(self, stop: Stop) -> None:
        """The other processes: until the file is finished, or this one is asked to stop."""
        self._await("finished", stop)

    def fail(self, reason: BaseException) -> None:
        """Tell the others that this process cannot go on."""
        if self._connected is None:
            return
        with contextlib.suppress(RuntimeError):  # they are gone, or will notice by themselves
            self._store.set("failed", f"process {self.rank} of {self.count} stopped: {reason}")
            self._store.add("claimed", _ALL)

    def _await(self, key: str, stop: Stop | None) -> None:
        while not self._ask(lambda: self._store.check([key])):
            self.check_on_others()
            if stop is not None and stop.signal:
                return
            time.sleep(POLL_S)

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except RuntimeError as error:  # the store was in a process that is gone
            raise Interrupted(
                f"process {self.rank} of {self.count} lost contact with the others; run the same command again "
                f"to resume"
            ) from error


def _as_text(numbers: Sequence[int]) -> str:
    """Growing numbers as text; of a billion images the blocks are tens of millions, mostly neighbours.

    >>> _as_text([0, 4, 8, 20]), _from_text("0:9:4 20:21:1")
    ('0:9:4 20:21:1', [0, 4, 8, 20])
    """
    ranges: list[range] = []
    for number in numbers:
        last = ranges[-1] if ranges else range(0)
        if len(last) == 1:
            ranges[-1] = range(last.start, number + 1, number - last.start)
        elif last and number == last[-1] + last.step:
            ranges[-1] = range(last.start, number + 1, last.step)
        else:
            ranges.append(range(number, number + 1))
    return " ".join(f"{part.start}:{part.stop}:{part.step}" for part in ranges)


def _from_text(text: str) -> list[int]:
    return [number for part in text.split() for number in range(*map(int, part.split(":")))]


def join_group(shard: str | None = None) -> WorkQueue | None:
    """The queue of the processes that torchrun's variables describe; None for a process that works alone.

    Args:
        shard: as asked for; where each process makes a shard of its own, it works alone.
    """
    environment = read_environment()
    if environment.world_size == 1 or (shard is not None and parse_shard(shard).from_rank):
        return None
    return WorkQueue(environment)


def refuse_incoherent_disk(output: Path) -> None:
    """Refuse a file that several machines would fill on a disk where they overwrite each other's rows.

    Raises:
        UsageError: with the file system's name.
    """
    environment = read_environment()
    kind = _file_system(output.parent.resolve())
    if environment.world_size > environment.local_world_size and kind in _NOT_COHERENT:
        raise UsageError(
            f"{output} lies on {kind}, where several machines cannot write one file: use --shard auto, which makes a "
            f"part of every process's own, and `featx merge`; or a disk made for it (Lustre, GPFS, CephFS)"
        )


def _file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of file system a folder lies on, as the kernel names it; empty if unknown."""
    kinds: dict[str, str] = {}
    if mounts.exists():
        for line in mounts.read_text(errors="replace").splitlines():
            _, place, kind, *_ = line.split(" ")
            kinds[place.replace("\\040", " ")] = kind
    return next((kinds[str(p)] for p in (folder, *folder.parents) if str(p) in kinds), "")
