"""What a command answers with: one object that prints for people and dumps as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Report:
    """Base of every verb's answer; subclasses are frozen dataclasses and say how they read in `lines`."""

    def lines(self) -> list[str]:
        """The answer for people."""
        raise AssertionError(f"{type(self).__name__} does not say how it reads")

    def __str__(self) -> str:
        return "\n".join(self.lines())

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


def table(header: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> list[str]:
    """Lines of a plain table; the first `left` columns are aligned to the left, the others to the right.

    >>> table(["layer", "values"], [["fc7", 4096], ["prob", 10]])
    ['layer  values', 'fc7      4096', 'prob       10']
    """
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return lines


def printable(path: bytes | str) -> str:
    r"""A path on one line: undecodable bytes and control characters as \x.. .

    >>> printable(b"a b\xff\n.jpg")
    'a b\\xff\\n.jpg'
    """
    text = path.decode(errors="backslashreplace") if isinstance(path, bytes) else path
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _no_surrogates(text))


def _no_surrogates(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
