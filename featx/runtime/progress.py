"""What a long command says while it works: a plan, a bar, a line every half minute; all on standard error."""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from featx.runtime.files import replacing
from featx.runtime.text import format_duration, printable

LOG_EVERY_S = 30.0
DRAW_EVERY_S = 0.1
METRICS_EVERY_S = 5.0
LOG_FORMATS = ("text", "time", "json")


@dataclass(frozen=True)
class Log:
    """How a command reports.

    Attributes:
        format: "text", "time" (with the time before every line), or "json" (one object a line).
        quiet: nothing but errors.
        verbose: details too, such as each image that fails, when it does.
        metrics: a file in Prometheus' text format that says how far it is; None for none.
    """

    format: str = "text"
    quiet: bool = False
    verbose: bool = False
    metrics: Path | None = None

    def entry(self, level: str, message: str, **more: object) -> str:
        """One line of the log."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        if self.format == "json":
            return json.dumps({"time": now, "level": level, "message": message, **more})
        return f"{now} {message}" if self.format == "time" else message


_log = Log()


def use_log(log: Log) -> None:
    """Have every reporter that is made from now on report so; for programs, not for libraries."""
    globals()["_log"] = log


def current_log() -> Log:
    """What `use_log` was given last."""
    return _log


class Reporter:
    """Takes what a command has to say and drops it; the base of those that print it."""

    def note(self, line: str) -> None:
        """One line of the plan, or a warning."""

    def detail(self, line: str) -> None:
        """What only `--verbose` asks for."""

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

    def __init__(self, stream: TextIO | None = None, log: Log | None = None) -> None:
        self.stream, self.log = stream or sys.stderr, log or current_log()
        self.is_terminal = self.stream.isatty() and self.log.format == "text"
        self._lock = threading.Lock()
        self._what, self._total, self._done, self._before = "", 0, 0, 0
        self._started = self._shown = self._measured = 0.0
        self._drawn = False

    def note(self, line: str) -> None:
        if self.log.quiet:
            return
        level = "warning" if line.startswith(("note:", "warning:")) else "info"
        with self._lock:
            self._clear()
            print(self.log.entry(level, printable(line)), file=self.stream, flush=True)

    def detail(self, line: str) -> None:
        if self.log.verbose:
            self.note(line)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done, self._before = what, total, done, done
        self._started = self._shown = self._measured = time.monotonic()
        self._measure(self._started)

    def advance(self, steps: int) -> None:
        with self._lock:
            self._done += steps
            now = time.monotonic()
            if now - self._shown >= (DRAW_EVERY_S if self.is_terminal else LOG_EVERY_S):
                self._shown = now
                self._show(now)
            if now - self._measured >= METRICS_EVERY_S:
                self._measured = now
                self._measure(now)

    def end(self) -> None:
        with self._lock:
            self._clear()
            self._measure(time.monotonic())

    def download(self, what: str, done: int, total: int) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._shown >= (DRAW_EVERY_S if self.is_terminal else LOG_EVERY_S) or done == total:
                self._shown = now
                self._line(f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", done=done, total=total)

    def _measure(self, now: float) -> None:
        """Write the metrics' file, whole or not at all."""
        if self.log.metrics is None:
            return
        step = self._what.replace("\\", "").replace('"', "")
        values = {
            "featx_step_done": self._done, "featx_step_total": self._total,
            "featx_step_rate": self._rate(now), "featx_step_seconds": now - self._started,
        }  # fmt: skip
        lines = [f'# TYPE {name} gauge\n{name}{{step="{step}"}} {value:.10g}\n' for name, value in values.items()]
        lines.append(f"# TYPE featx_updated_seconds gauge\nfeatx_updated_seconds {time.time():.3f}\n")
        with replacing(self.log.metrics) as partial:
            partial.write_text("".join(lines))

    def _rate(self, now: float) -> float:
        return (self._done - self._before) / max(now - self._started, 1e-9)

    def _show(self, now: float) -> None:
        rate = self._rate(now)
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
        self._line(
            text, step=self._what, done=self._done, total=self._total, per_second=round(rate, 3),
            seconds_left=round(left, 1),
        )  # fmt: skip

    def _line(self, text: str, **more: object) -> None:
        if self.log.quiet:
            return
        if self.is_terminal:
            self._clear()
            self.stream.write(text)
            self._drawn = True
        else:
            # In a log a line without its time says little.
            log = replace(self.log, format="time") if self.log.format == "text" else self.log
            self.stream.write(log.entry("info", text, **more) + "\n")
        self.stream.flush()

    def _clear(self) -> None:
        if self._drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._drawn = False
