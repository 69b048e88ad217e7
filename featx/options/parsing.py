"""Texts that users write, as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
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


def parse_colours(given: str | Sequence[float], what: str, low: float, high: float) -> tuple[float, float, float]:
    """Three numbers, one for each colour, from three or from one for all.

    >>> parse_colours("0.5", "--mean", 0, 1), parse_colours([0.1, 0.2, 0.3], "--std", 0, 1)
    ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    """
    words = given.split(",") if isinstance(given, str) else [given] if isinstance(given, float | int) else given
    try:
        values = [float(word) for word in words]
    except (ValueError, TypeError):
        values = []
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3:
        raise UsageError(f"{what} is {given!r}; write a number for each colour, as 0.485,0.456,0.406, or one for all")
    if not all(low <= value <= high for value in values):
        hint = "; these look like levels of 0 to 255: divide by 255" if max(values) > high and high == 1.0 else ""
        raise UsageError(f"{what} is {given}; its values must be from {low:g} to {high:g}{hint}")
    return values[0], values[1], values[2]


def parse_mean(text: Any) -> str:
    """Three means, or one for all colours, as text that `parse_colours` reads."""
    return _as_text(parse_colours(text, "--mean", 0.0, 1.0))


def parse_std(text: Any) -> str:
    """Three deviations, or one for all colours."""
    return _as_text(parse_colours(text, "--std", 1e-6, 1.0))


def parse_pad_color(text: Any) -> str:
    """A colour in levels of 0 to 255, or "mean"."""
    return "mean" if text == "mean" else _as_text(parse_colours(text, "--pad-color", 0.0, 255.0))


def _as_text(values: Sequence[float]) -> str:
    return ",".join(repr(value).removesuffix(".0") for value in values)
