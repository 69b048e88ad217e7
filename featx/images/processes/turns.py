"""Large images take turns, so that memory is bounded over all workers and not for each of them alone.

A photo needs a few tens of megabytes while it is decoded, and every worker decodes one at any time. A file of a
gibibyte, or 89 million pixels with transparency, needs more than that, and as many at once as there are workers could
fill any memory: of those only so many are in hand as there are turns, whichever threads or processes have them.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections.abc import Callable, Iterator

from featx.runtime.memory import free_main_memory

LARGE_BYTES = 1 << 28  # below it an image needs no turn
TURN_BYTES = 1 << 31  # what one of the largest images that are allowed needs
_LOOKED_EVERY_S = 0.02

Need = Callable[[int], None]  # told how many bytes of memory an image is about to take; waits for a turn


def no_turns(_size: int) -> None:
    """For a caller that has one image at a time."""


def turns_for(workers: int) -> int:
    """How many large images may be in hand at once: one, or as many as half of the free memory holds."""
    return max(1, min(workers, free_main_memory() // 2 // TURN_BYTES))


class Turns:
    """So many turns for the threads of this process, or, through an open file, for those of several processes.

    Args:
        descriptor: of a file that the processes share, each with one thread that decodes. A turn is a lock on one of
            its bytes, which a process that dies gives back.
        waiting: called again and again by who waits.
    """

    def __init__(self, count: int, descriptor: int | None = None, waiting: Callable[[], None] = lambda: None) -> None:
        self.count, self.waiting = count, waiting
        self._descriptor = descriptor
        self._free = threading.BoundedSemaphore(count)

    @contextlib.contextmanager
    def image(self) -> Iterator[Need]:
        """For the time of one image: what it tells of the memory it needs."""
        taken: list[int] = []

        def need(size: int) -> None:
            if size >= LARGE_BYTES and not taken:
                taken.append(self._take())

        try:
            yield need
        finally:
            for place in taken:
                self._give_back(place)

    def _take(self) -> int:
        while True:
            place = self._try()
            if place is not None:
                return place
            self.waiting()

    def _try(self) -> int | None:
        if self._descriptor is None:
            return 0 if self._free.acquire(timeout=_LOOKED_EVERY_S) else None
        for place in range(self.count):
            with contextlib.suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                return place
        time.sleep(_LOOKED_EVERY_S)
        return None

    def _give_back(self, place: int) -> None:
        if self._descriptor is None:
            self._free.release()
        else:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)
