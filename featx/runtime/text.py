"""Numbers, paths, names and tables as text."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence


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
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half of a pair, which stands for no byte
        return text.encode(errors="backslashreplace").decode()


def format_duration(seconds: float) -> str:
    """Seconds for people.

    >>> format_duration(0.42), format_duration(42), format_duration(3700), format_duration(200000)
    ('0.4 s', '42 s', '1 h 01 min', '2 d 07 h')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
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


def nearest_names(name: str, candidates: Sequence[str], count: int = 3) -> str:
    """The candidates most like a mistyped name, quoted, the best first."""
    near = difflib.get_close_matches(name, candidates, count, 0) if candidates else []
    return ", ".join(repr(n) for n in near)


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """A count with its noun.

    Args:
        nouns: of several, if not `noun` with an s.

    >>> plural(1, "image"), plural(2000, "image"), plural(0, "class", "classes")
    ('1 image', '2,000 images', '0 classes')
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def class_name(label: str) -> str:
    """A label as classes are compared: in Unicode's composed form, without spaces around it.

    macOS writes é as two characters and everybody else as one; both look the same.
    """
    return unicodedata.normalize("NFC", label).strip()


_INTEGER = re.compile("0|-?[1-9][0-9]{0,17}")


def in_order(names: Iterable[str]) -> list[str]:
    """Classes in order: by code point, or by value if all are integers, so that label 2 comes before label 10.

    >>> in_order(["10", "9", "0"]), in_order(["10", "9", "cat"])
    (['0', '9', '10'], ['10', '9', 'cat'])
    """
    if all(_INTEGER.fullmatch(name) for name in names):
        return sorted(names, key=int)
    return sorted(names)
