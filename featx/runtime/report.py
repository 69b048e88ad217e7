"""What a command answers with: one object that prints for people and dumps as JSON."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from featx.runtime.text import printable


class Report:
    """Base of every verb's answer; subclasses are frozen dataclasses and say how they read in `lines`."""

    def lines(self) -> list[str]:
        """The answer for people."""
        raise AssertionError(f"{type(self).__name__} does not say how it reads")

    def __str__(self) -> str:
        # Names and texts out of files may hold escape sequences and newlines: a line stays one line.
        return "\n".join(printable(line) for line in self.lines())

    def to_json(self) -> dict[str, Any]:
        """The answer as plain values."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return {spec.name: _plain(getattr(self, spec.name)) for spec in fields}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {spec.name: _plain(getattr(value, spec.name)) for spec in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
