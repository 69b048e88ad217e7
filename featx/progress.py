"""What a long command says while it works: a plan, a bar, a line every half minute; all on standard error."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

LOG_EVERY_S = 30.0
DRAW_EVERY_S = 0.1
ECHO_S = 10.0


class Reporter:
    """Takes what a command has to say and drops it; the base of those that print it."""

    def note(self, line: str) -> None:
        """One line of the plan, or a warning."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A job of `total` steps begins, `done` of them already behind us."""

    def advance(self, steps: int) -> None:
        """Some steps are done; may be called by several threads."""

    def end(self) -> None:
        """The job is over."""

    def download(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes are here; total is 0 if unknown."""


ALREADY_THERE = "everything was there already; nothing to do"
SILENT = Reporter()


class StderrReporter(Reporter):
    """A bar on a terminal, one plain line every 30 seconds in a log."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self._lock = threading.Lock()
        self._what, self._total, self._done, self._before = "", 0, 0, 0
        self._started = self._shown = 0.0
        self._drawn = False

    def note(self, line: str) -> None:
        with self._lock:
            self._clear()
            print(line, file=self.stream, flush=True)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done, self._before = what, total, done, done
        self._started = self._shown = time.monotonic()

    def advance(self, steps: int) -> None:
        with self._lock:
            self._done += steps
            now = time.monotonic()
            if now - self._shown >= (DRAW_EVERY_S if self.is_terminal else LOG_EVERY_S):
                self._shown = now
                self._show(now)

    def end(self) -> None:
        with self._lock:
            self._clear()

    def download(self, what: str, done: int, total: int) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._shown >= (DRAW_EVERY_S if self.is_terminal else LOG_EVERY_S) or done == total:
                self._shown = now
                self._line(f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def _show(self, now: float) -> None:
        rate = (self._done - self._before) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        share = self._done / max(self._total, 1)
        text = (
            f"{self._what}: {self._done:,} of {self._total:,} ({share:.0%}), {rate:.1f}/s, "
            f"{format_duration(left)} left"
        )
        if self.is_terminal:
            width = max(0, min(30, shutil.get_terminal_size().columns - len(text) - 4))
            full = int(width * share)
            text = f"[{'#' * full}{'.' * (width - full)}] {text}"
        self._line(text)

    def _line(self, text: str) -> None:
        if self.is_terminal:
            self._clear()
            self.stream.write(text)
            self._drawn = True
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def _clear(self) -> None:
        if self._drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._drawn = False


def format_duration(seconds: float) -> str:
    """Seconds for people.

    >>> format_duration(42), format_duration(3700), format_duration(200000)
    ('42 s', '1 h 01 min', '2 d 07 h')
    """
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400 * 2:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of 1000.

    >>> format_bytes(999), format_bytes(149_800_000)
    ('999 B', '149.8 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


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
