"""Colours and marks of classes that everybody can tell apart."""

from __future__ import annotations

# Okabe & Ito, Color universal design, 2008; yellow is left out: on white it cannot be seen. The next seven are these,
# darker, and then lighter.
OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")
UNKNOWN = "#bbbbbb"  # of an image without a class
MARKS = ("o", "^", "s", "D", "v", "P", "X")
_DARKER, _LIGHTER = 0.55, 0.5


def class_colour(index: int) -> str:
    """The colour of a class; after 21 they come again.

    >>> class_colour(0), class_colour(7), class_colour(14)
    ('#0072b2', '#003f62', '#80b8d8')
    """
    if index < 0:
        return UNKNOWN
    base = OKABE_ITO[index % len(OKABE_ITO)]
    parts = [int(base[start : start + 2], 16) for start in (1, 3, 5)]
    turn = index // len(OKABE_ITO) % 3
    if turn == 1:
        parts = [round(part * _DARKER) for part in parts] if any(parts) else [90, 60, 30]
    elif turn == 2:
        parts = [round(part + (255 - part) * _LIGHTER) for part in parts]
    return "#" + "".join(f"{part:02x}" for part in parts)


def class_mark(index: int) -> str:
    """matplotlib's marker of a class."""
    return "." if index < 0 else MARKS[index // len(OKABE_ITO) % len(MARKS)]
