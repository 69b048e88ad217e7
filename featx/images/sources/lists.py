"""Lists of images: one path a line, or a CSV with the columns path,label[,split][,group]; as other tools write them.

How a list is written is found out by which of its files exist: paths may stand in quotes, have spaces around them or
Windows' backslashes, and a label behind them, as in Caffe's lists.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from featx.errors import SourceError
from featx.images.bad_image import BadImage
from featx.images.manifest import Manifest, Skipped, make_manifest
from featx.images.sources.remote import fetch, is_there, is_url_in_list, joined, url_of
from featx.runtime.text import printable

_LOOKED_AT = 200  # lines by which the writing of a list is found out
_ASKED_FOR = 5  # the same at an address
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Entry:
    """One image of a list: where it stands, and what it says."""

    line: int
    path: bytes
    label: str | None = None
    split: str | None = None
    group: str | None = None


def scan_list(path: Path) -> Manifest:
    """The images of a text file with one path a line, perhaps with a label behind it, or of a CSV.

    Raises:
        SourceError: it is no list, or none of the files it names exists.
    """
    content = _content(path)
    if b"\0" in content and not _is_utf16(content):  # find -print0: the only way to list names with newlines
        lines = [line for line in content.split(b"\0") if line]
        if not all(_plausible_path(line) for line in lines[:100]):
            raise SourceError(f"{path} is not a list of paths: it holds binary data")
        return _manifest("list", path, [Entry(number, line) for number, line in enumerate(lines, 1)], Skipped())
    text = _text(content)
    header = text.lstrip("\ufeff\n ").partition("\n")[0]
    if any({"path", "label"} <= set(_columns(header, delimiter)) for delimiter in _DELIMITERS):
        return scan_csv(path)
    skipped = Skipped()
    entries: list[Entry] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if line.lstrip().startswith("#") and not _exists(path.parent, os.fsencode(line)):
            skipped.add("comment", line)
            continue
        entries.append(Entry(number, os.fsencode(line)))
    return _manifest("list", path, entries, skipped)


def scan_standard_input() -> Manifest:
    """The images that standard input lists, one path a line or, after find -print0, with zero bytes between them.

    Raises:
        SourceError: nothing comes, or none of the files exists.
    """
    content = sys.stdin.buffer.read()
    entries = [line for line in content.split(b"\0" if b"\0" in content else b"\n") if line.strip()]
    if not entries:
        raise SourceError(
            "standard input lists no images; as in: find photos -name '*.jpg' -print0 | featx extract -"
        )
    here = Path.cwd()
    if not any(_exists(here, entry) for entry in entries[:_LOOKED_AT]):
        raise SourceError(f"standard input, line 1: no file {printable(entries[0])}; paths are relative to {here}")
    none: list[str | None] = [None] * len(entries)
    return make_manifest("stdin", here, here, [_normal(entry) for entry in entries], none, none, Skipped())


def _content(path: Path) -> bytes:
    """Of a list, here or at an address.

    Raises:
        SourceError: it cannot be fetched.
    """
    url = url_of(path)
    if url is None:
        return path.read_bytes()
    try:
        return fetch(url)
    except BadImage as bad:
        raise SourceError(f"{url}: {bad}") from None


def _plausible_path(line: bytes) -> bool:
    return len(line) < 4096 and not any(byte < 9 for byte in line)


def _is_utf16(content: bytes) -> bool:
    """Whether every second byte is zero, as in UTF-16 of Latin letters; PowerShell 5 writes it."""
    start = content[:2000]
    ends = start[0::2], start[1::2]
    return content.startswith((b"\xff\xfe", b"\xfe\xff")) or any(
        len(half) > 1 and half.count(0) == len(half) and other.count(0) == 0 for half, other in (ends, ends[::-1])
    )


def _text(content: bytes) -> str:
    """Text with \\n at the ends of lines, whatever wrote it; bytes that are not UTF-8 as surrogates."""
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            errors = "surrogateescape" if encoding == "utf-8" else "replace"
            text = content[len(mark) :].decode(encoding, errors)
            break
    else:
        if _is_utf16(content):
            text = content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le", errors="replace")
        else:
            text = content.decode("utf-8", errors="surrogateescape")
    # Old Macs end lines with \\r alone; beside \\n it may be part of a name.
    return text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")


def _columns(header: str, delimiter: str) -> list[str]:
    return [name.strip().strip('"').lower() for name in header.split(delimiter)]


def scan_csv(path: Path) -> Manifest:
    """The images of a CSV or TSV with the columns path,label[,split][,group]; other columns are ignored.

    Raises:
        SourceError: no such columns, not UTF-8, or none of the files it names exists.
    """
    text, first = _text(_content(path)).lstrip("\ufeff"), 1
    if match := re.match(r"sep=(.)\n", text):  # Excel's own first line
        text, first = text[match.end() :], 2
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=lambda d: ({"path", "label"} <= set(_columns(header, d)), header.count(d)))
    spaced = f"{delimiter} " in header
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    columns, entries, skipped = _records(path, reader, first)
    if "path" not in columns or "label" not in columns:
        raise SourceError(
            f"{path}, line {first}: the columns are {', '.join(columns) or 'none'}; needed are path,label and "
            f"optionally split and group"
        )
    return _manifest("csv", path, entries, skipped)


def _records(path: Path, reader: Iterator[list[str]], first: int) -> tuple[list[str], list[Entry], Skipped]:
    skipped, entries, columns = Skipped(), [], list[str]()
    ended = 0  # line of the end of the last record that could be read
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        named = [name for name in columns if name]
        if len(set(named)) < len(named):
            raise SourceError(f"{path}, line {first}: a column appears twice: {', '.join(columns)}")
        if "path" not in columns or "label" not in columns:
            return columns, [], skipped
        ended = reader.line_num  # type: ignore[attr-defined]  # of csv.reader
        for values in reader:
            ended = reader.line_num  # type: ignore[attr-defined]  # of csv.reader
            number = ended + first - 1
            if not any(value.strip() for value in values):
                skipped.add("empty line", f"line {number}")
                continue
            entries.append(_entry(path, number, columns, values))
    except csv.Error as error:
        raise SourceError(f"{path}, line {ended + first}: not CSV: {error}") from error
    return columns, entries, skipped


def _entry(path: Path, number: int, columns: list[str], values: list[str]) -> Entry:
    record = dict(zip(columns, values, strict=False))
    label, split = record.get("label", ""), record.get("split", "").strip()
    group = record.get("group", "").strip()
    if not record["path"] or len(values) > len(columns):
        raise SourceError(f"{path}, line {number}: needs a path and at most {len(columns)} columns")
    if "\0" in label + split + group:
        raise SourceError(f"{path}, line {number}: a label, split or group holds a zero byte")
    if any("\udc80" <= letter <= "\udcff" for letter in label + split + group):
        raise SourceError(f"{path}, line {number}: the label, split or group is not UTF-8; save the file as UTF-8")
    return Entry(number, os.fsencode(record["path"]), label.strip() or None, split or None, group or None)


# --- how a list is written

Reading = Callable[[Entry], Entry]


def _manifest(kind: str, source: Path, entries: list[Entry], skipped: Skipped) -> Manifest:
    for entry in entries:
        if b"\0" in entry.path:
            raise SourceError(
                f"{source}, line {entry.line}: {printable(entry.path)} holds a zero byte; no file is called so"
            )
    read = _reading(kind, source, entries)
    found = [read(entry) for entry in entries]
    paths = [_normal(entry.path) for entry in found]
    labels, splits = [entry.label for entry in found], [entry.split for entry in found]
    groups = [entry.group for entry in found]
    return make_manifest(kind, source, source.parent, paths, labels, splits, skipped, groups)


def _reading(kind: str, source: Path, entries: list[Entry]) -> Reading:
    """How the paths of a list are to be read: the first of several ways by which most of its files exist.

    Raises:
        SourceError: none exists in any way.
    """
    sample = entries[: _LOOKED_AT if url_of(source) is None else _ASKED_FOR]
    ways: list[Reading] = []
    for labelled, slashes, clean in itertools.product([False, True], repeat=3):
        if not (labelled and kind == "csv"):
            ways.append(_Way(labelled=labelled, slashes=slashes, clean=clean or labelled))
    counts = [sum(_exists(source.parent, way(entry).path) for entry in sample) for way in ways]
    best = max(counts, default=0)
    if sample and not best:
        first = sample[0]
        where = printable(os.path.join(os.fsencode(source.parent), first.path))
        raise SourceError(
            f"{source}, line {first.line}: no file {where}, and none of the {len(sample)} first entries is there. "
            f"Paths are relative to the folder of the list, or absolute"
        )
    return ways[counts.index(best)] if sample else ways[0]


@dataclass(frozen=True)
class _Way:
    """One way to read a path.

    Attributes:
        labelled: a label stands behind it, after a space, tab or comma.
        slashes: its backslashes are slashes.
        clean: spaces and quotes around it are not part of it.
    """

    labelled: bool
    slashes: bool
    clean: bool

    def __call__(self, entry: Entry) -> Entry:
        path, label = entry.path, entry.label
        if self.labelled:
            parts = re.split(rb"\s*[\t,;]\s*|\s+(?=\S+\s*$)", path.strip(), maxsplit=1)
            if len(parts) == 2:
                path, label = parts[0], parts[1].decode(errors="surrogateescape").strip() or None
        if self.clean:
            path = path.strip()
            if len(path) > 1 and path[:1] == path[-1:] and path[:1] in (b'"', b"'"):
                path = path[1:-1]
        if self.slashes:
            path = path.replace(b"\\", b"/")
        return Entry(entry.line, path, label, entry.split, entry.group)


def _exists(folder: Path, path: bytes) -> bool:
    if is_url_in_list(path):
        return True
    if (address := url_of(folder)) is not None:
        return bool(path) and is_there(joined(address, os.fsdecode(path)))
    try:
        return os.path.lexists(os.path.join(os.fsencode(folder), path)) and bool(path)
    except ValueError:
        return False


def _normal(path: bytes) -> bytes:
    if is_url_in_list(path):
        return path
    # After a link, a/link/../b is not a/b: such a path is kept as it was written.
    return path if b".." in path.split(b"/") else os.path.normpath(path)
