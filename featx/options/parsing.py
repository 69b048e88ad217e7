"""Texts that users write, as numbers."""

from __future__ import annotations

import re
from typing import Any

from featx.errors import UsageError


def parse_epochs(text: Any) -> tuple[int, ...]:
    """Epochs as numbers, in order.

    >>> parse_epochs("5,1,2")
    (1, 2, 5)
    """
    words = str(text).split(",")
    if not all(re.fullmatch(r"\s*\d{1,6}\s*", word) for word in words):
        raise UsageError(f"{text!r} are no epochs; write them as 1,2,5,10")
    return tuple(sorted({int(word) for word in words}))


def parse_fraction(text: Any) -> float:
    """A share of the images, as `0.05` or `5%`.

    >>> parse_fraction("5%"), parse_fraction("0.05"), parse_fraction(1)
    (0.05, 0.05, 1.0)
    """
    try:
        value = float(str(text).rstrip("%")) / (100 if str(text).endswith("%") else 1)
    except ValueError:
        raise UsageError(f"{text!r} is not a share; write 0.05 or 5%") from None
    if not 0 <= value <= 1:
        raise UsageError(f"{text!r} is not a share between 0 and 1; write 0.05 or 5%")
    return value


def parse_bytes(text: Any) -> int:
    """A number of bytes, as `4G`, `512M` or `4000000000`.

    >>> parse_bytes("1.5G"), parse_bytes("512M"), parse_bytes(4000000)
    (1500000000, 512000000, 4000000)
    """
    found = re.fullmatch(r"([0-9.]+) ?([kMGT]?)B?", str(text).strip())
    try:
        value = float(found[1]) * 1000 ** " kMGT".index(found[2] or " ") if found else 0.0
    except ValueError:
        value = 0.0
    if not 1e6 <= value < 1e16:
        raise UsageError(f"{text!r} is no amount of memory; write 4G or 512M, at least 1M")
    return int(value)


def parse_c(text: Any) -> float | None:
    """The inverse regularisation C: a number above 0, or None for `auto`.

    >>> parse_c("auto"), parse_c("0.5")
    (None, 0.5)
    """
    if text is None or text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"C is {text!r}; it must be a number above 0, or auto") from None
    if not 0 < value < float("inf"):
        raise UsageError(f"C is {text}; it must be a number above 0, or auto")
    return value
