"""What a long command says while it works: a plan, a bar, a line every half minute; all on standard error."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterable
from typing import TextIO

from featx.runtime.text import format_duration, printable

LOG_EVERY_S = 30.0
DRAW_EVERY_S = 0.1


class Reporter:
    """Takes what a command has to say and drops it; the base of those that print it."""

    def note(self, line: str) -> None:
        """One line of the plan, or a warning."""

    def notes(self, lines: Iterable[str]) -> None:
        """Several of them."""
        for line in lines:
            self.note(line)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A job of `total` steps begins, `done` of them already behind us."""

    def advance(self, steps: int) -> None:
        """Some steps are done; may be called by several threads."""

    def end(self) -> None:
        """The job is over."""

    def download(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes are here; total is 0 if unknown."""


class OnlyProgress(Reporter):
    """Shows the progress of a step of a larger job, but not its plan."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self._reporter.begin(what, total, done)

    def advance(self, steps: int) -> None:
        self._reporter.advance(steps)

    def end(self) -> None:
        self._reporter.end()

    def download(self, what: str, done: int, total: int) -> None:
        self._reporter.download(what, done, total)


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
            print(printable(line), file=self.stream, flush=True)

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
