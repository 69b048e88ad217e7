"""Threads: how many, work shared between them, and how many PyTorch uses inside each."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator


def usable_cores() -> int:
    """Cores this process may run on."""
    # Where a process cannot be bound to some of the cores, as on macOS, it may use all of them.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread in here: the other cores have pipelines of their own."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_on_one_thread() -> None:
    """Have PyTorch use one thread for everything the calling thread computes from now on.

    PyTorch keeps the number per thread, and the latest one as the default of threads to come: whoever starts such
    threads in a host program sets the default back (`one_thread` does).
    """
    import torch

    torch.get_num_threads()  # a thread's first look takes the default, also over a number set before it
    torch.set_num_threads(1)


def run_workers(
    blocks: Iterable[int],
    workers: int,
    work: Callable[[int], None],
    stop: threading.Event,
    *,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Give every block to `work`, several at a time on threads; the first error stops them all and is raised.

    When `stop` is set, blocks that were begun are finished and no others are begun.

    Args:
        prepare: called by every thread before its first block.
    """
    waiting, lock = iter(blocks), threading.Lock()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if prepare is not None:
                prepare()
            while not (stop.is_set() or errors):
                with lock:
                    first = next(waiting, None)
                if first is None:
                    return
                work(first)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, name=f"featx-{n}", daemon=True) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # short waits: signal handlers run in this thread only
            thread.join(0.1)
    if errors:
        raise errors[0]
