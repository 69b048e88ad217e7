"""A text file of paths, and a CSV with the columns path,label[,split]."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from featx.errors import SourceError
from featx.images.manifest import Manifest, Skipped, make_manifest
from featx.runtime.text import printable


def scan_list(path: Path) -> Manifest:
    content = path.read_bytes()
    if b"\0" in content:  # find -print0: the only way to list names with newlines
        lines = [line for line in content.split(b"\0") if line]
        if not all(_plausible_path(line) for line in lines[:100]):
            raise SourceError(f"{path} is not a list of paths: it holds binary data")
    else:
        lines = [line.rstrip(b"\r") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    paths = _normalised(path, [(number, line) for number, line in enumerate(lines, 1) if line.strip()])
    none: list[str | None] = [None] * len(paths)
    return make_manifest("list", path, path.parent, paths, none, none, Skipped())


def _plausible_path(line: bytes) -> bool:
    return len(line) < 4096 and not any(byte < 9 for byte in line)


def scan_csv(path: Path) -> Manifest:
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, dict[str, str]]] = []
    ended = 0  # line of the end of the last record that could be read
    try:
        columns = list(reader.fieldnames or [])
        ended = reader.line_num
        for record in reader:
            records.append((reader.line_num, record))
            ended = reader.line_num
    except csv.Error as error:
        raise SourceError(f"{path}, line {ended + 1}: not CSV: {error}") from error
    if "path" not in columns or "label" not in columns:
        raise SourceError(
            f"{path}, line 1: the columns are {', '.join(columns) or 'none'}; needed are path,label and "
            f"optionally split"
        )
    if len(set(columns)) < len(columns):
        raise SourceError(f"{path}, line 1: a column appears twice: {', '.join(columns)}")
    lines: list[tuple[int, bytes]] = []
    labels: list[str | None] = []
    splits: list[str | None] = []
    for number, record in records:
        if not record["path"] or None in record:
            raise SourceError(f"{path}, line {number}: needs a path and at most {len(columns)} columns")
        if "\0" in (record["label"] or "") + (record.get("split") or ""):
            raise SourceError(f"{path}, line {number}: a label or split holds a zero byte")
        if any("\udc80" <= letter <= "\udcff" for letter in (record["label"] or "") + (record.get("split") or "")):
            raise SourceError(f"{path}, line {number}: the label or split is not UTF-8; save the file as UTF-8")
        lines.append((number, os.fsencode(record["path"])))
        labels.append(record["label"] or None)
        splits.append(record.get("split") or None)
    return make_manifest("csv", path, path.parent, _normalised(path, lines), labels, splits, Skipped())


def _normalised(source: Path, lines: list[tuple[int, bytes]]) -> list[bytes]:
    seen: dict[bytes, int] = {}
    paths = []
    for number, line in lines:
        if b"\0" in line:
            raise SourceError(f"{source}, line {number}: {printable(line)} holds a zero byte; no file is called so")
        normal = os.path.normpath(line)
        if normal in seen:
            raise SourceError(
                f"{source}: {printable(normal)} is on line {seen[normal]} and again on line {number}; "
                f"each image may appear once"
            )
        seen[normal] = number
        # After a link, a/link/../b is not a/b: such a path is kept as it was written.
        paths.append(line if b".." in line.split(b"/") else normal)
    return paths
