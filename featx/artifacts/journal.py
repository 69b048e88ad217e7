"""What a probe has found so far, on disk, so that a probe that was killed goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

from featx.artifacts.artifact import refuse_other_plan
from featx.errors import FileFormatError
from featx.runtime.files import busy, disk_errors, try_lock
from featx.runtime.stored import ProbeFit, convert, parse_json

JOURNAL = "probe.partial.jsonl"
Outcome = tuple[float, float, int]  # of one fit: mean accuracy per class, C, fits not proven


def _append(file: IO[bytes], value: Any) -> None:
    """One more line; of an unbuffered file, so that what the disk refuses is refused here and not at the end."""
    line = memoryview(json.dumps(value).encode() + b"\n")
    while line:
        line = line[file.write(line) :]


def _plan_in(line: bytes, name: str) -> dict[str, Any]:
    return convert(parse_json(line, name), dict[str, Any], name)


class Journal:
    """One line per fit behind one for the plan; only one process at a time writes it."""

    def __init__(self, path: Path | None, plan: dict[str, Any]) -> None:
        """Take up an earlier probe's journal, or begin one.

        Raises:
            PlanMismatch: it belongs to another probe.
            Interrupted: another process is writing it.
        """
        self.path = path
        self.done: dict[tuple[str, str, int, int], Outcome] = {}
        self._file: IO[bytes] | None = None
        if path is None:
            return
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            try:
                self._read(self._file, plan)
            except BaseException:
                self._file.close()
                raise

    def _read(self, file: IO[bytes], plan: dict[str, Any]) -> None:
        if not try_lock(file.fileno()):
            raise busy(Path(file.name).parent)
        file.seek(0)
        lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]  # a kill may cut one
        try:
            if lines:
                refuse_other_plan(
                    Path(file.name).parent, "probe", _plan_in(lines[0], file.name), plan, finished=False
                )
            for line in lines[1:]:
                fit = convert(parse_json(line, file.name), ProbeFit, file.name)
                self.done[fit.layer, fit.head, fit.repeat, fit.fewer] = (fit.accuracy, fit.c, fit.unproven)
        except FileFormatError as error:
            raise FileFormatError(f"{file.name} is damaged; delete it and run again") from error
        file.truncate(sum(map(len, lines)))
        file.seek(0, os.SEEK_END)
        if not lines:
            _append(file, plan)

    def write(self, layer: str, head: str, repeat: int, outcome: Outcome, fewer: int = 0) -> None:
        """Keep the outcome of one fit.

        Args:
            fewer: images per class, of a learning curve; 0 for all that the probe trains on.
        """
        if self.path is not None and self._file is not None:
            with disk_errors(self.path):
                _append(self._file, [layer, head, repeat, *outcome, *([fewer] if fewer else [])])

    def close(self) -> None:
        """Let go of it."""
        if self._file is not None:
            self._file.close()
