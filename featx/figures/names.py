"""Names below an axis, such that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_CHARACTERS = 32
SIZE = 9.0  # of the font, in points
_WIDTH = 0.62  # of a wide letter, as a share of the font's size


def height_of(names: Sequence[str], inches: float) -> float:
    """How much higher a figure must be for names that do not fit level, in inches.

    Args:
        inches: from one name to the next.
    """
    longest = _longest(names)
    return longest if longest > inches else 0.0


def name_places(axes: Any, names: Sequence[str], inches: float) -> None:
    """Write names below places 0, 1, ... of the x axis: level where they fit, else upright."""
    upright = _longest(names) > inches
    axes.set_xticks(range(len(names)), [_shown(name) for name in names], rotation=90 if upright else 0, fontsize=SIZE)


def _shown(name: str) -> str:
    """What tells long names apart is mostly at their ends."""
    if len(name) <= MOST_CHARACTERS:
        return name
    head = MOST_CHARACTERS // 3
    return f"{name[:head]}…{name[head + 1 - MOST_CHARACTERS :]}"


def _longest(names: Sequence[str]) -> float:
    return max((len(_shown(name)) for name in names), default=0) * _WIDTH * SIZE / 72
