"""A table of predictions and the record beside it: what it was made by, so that it is known again."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.atomic import disk_errors, refuse_special_file, replacing
from featx.errors import PlanMismatch, UsageError
from featx.store.schema import differences

FIRST_COLUMNS = b"path,class,"
FORMAT = "featx predictions"


def record_path(table: Path) -> Path:
    """Where the record of a table is."""
    return table.with_name(f"{table.name}.json")


def refuse_to_destroy(table: Path) -> None:
    """Raise UsageError for a file that is there and is no table of predictions."""
    with disk_errors(table):
        if not os.path.lexists(table):
            return
        refuse_special_file(table)
        with table.open("rb") as file:
            if file.read(len(FIRST_COLUMNS)) != FIRST_COLUMNS:
                raise UsageError(f"{table} is there and is no table of predictions; choose another name with -o")


def take_finished(table: Path, plan: Mapping[str, Any]) -> tuple[dict[str, Any], object] | None:
    """What the record says of a table that is there already, and of its images; None if there is no table or record.

    Raises:
        PlanMismatch: the table was made by another plan, or has been changed since.
    """
    path = record_path(table)
    if not (table.is_file() and path.is_file()):
        return None
    try:
        found = json.loads(path.read_text())
        stored, counts, digest = dict(found["plan"]), dict(found["report"]), str(found["sha256"])
        is_ours = found["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise PlanMismatch(f"{path} should say what made {table.name}, and does not; delete both to predict anew")
    changed = differences(stored, plan)
    if changed:
        raise PlanMismatch(
            f"{table} holds other predictions: {'; '.join(changed[:3])}. Choose another name with -o, or delete it"
        )
    if sha256_of(table) != digest:
        raise PlanMismatch(f"{table} was changed after it was made; rename it, or delete it to have it made again")
    return counts, found.get("files")


def sha256_of(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with disk_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_table(
    table: Path,
    classes: Sequence[str],
    paths: Sequence[str],
    chosen: Iterable[str | None],
    outputs: npt.NDArray[np.floating],
    errors: Mapping[int, str],
) -> None:
    """One line per image; the class and the scores of those that failed are empty."""
    # surrogateescape: file names that are not UTF-8 come out as the bytes they are.
    with (
        replacing(table) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "class", *(f"score:{name}" for name in classes), "error"])
        for row, (path, name) in enumerate(zip(paths, chosen, strict=True)):
            scores = [""] * len(classes) if name is None else [f"{v:.6g}" for v in outputs[row]]
            writer.writerow([path, name or "", *scores, errors.get(row, "")])


def write_record(table: Path, plan: Mapping[str, Any], report: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """After the table, for a table without a record can be made again.

    Args:
        files: the record of the images; empty for a table of a features file.
    """
    found = {"format": FORMAT, "plan": plan, "report": report, "files": files, "sha256": sha256_of(table)}
    with replacing(record_path(table)) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n")
