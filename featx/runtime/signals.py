"""SIGINT and SIGTERM: finish the work in hand, keep it, and stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_S = 10.0


class Stop(threading.Event):
    """Set when the user or the scheduler asks to stop; `signal` says which signal it was."""

    signal: int | None = None


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """While inside, the first SIGINT or SIGTERM asks for a stop after the work in hand; the second one kills.

    A second SIGTERM within ten seconds is the same request: a scheduler and torchrun both send one.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[signal.Signals, object] = {}
    first_at: list[float] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if first_at and time.monotonic() - first_at[0] < ECHO_S:
            return  # SIGTERM's echo
        for other, handler in before.items():
            if first_at or signal.SIGINT in (number, other):
                signal.signal(other, handler)  # type: ignore[arg-type]  # what signal.signal gave us itself
        if first_at:
            signal.raise_signal(number)
        first_at.append(time.monotonic())
        stop.signal = number
        stop.set()

    for wanted in (signal.SIGINT, signal.SIGTERM):
        before[wanted] = signal.signal(wanted, ask)
    try:
        yield stop
    finally:
        for wanted, handler in before.items():
            signal.signal(wanted, handler)  # type: ignore[arg-type]  # as above
