"""A table of predictions and the record beside it: what it was made from, so that it is recognised."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import Artifact, Stored, write_json
from featx.errors import FileFormatError, PlanMismatch, UsageError
from featx.options.extraction import PredictConfig
from featx.runtime.files import disk_errors, refuse_special_file, replacing, sha256_of_file
from featx.runtime.stored import convert, read_json_file

FIRST_COLUMNS = b"path,class,"
FORMAT = "featx predictions"
Counts = dict[str, Any]  # what a report says of a table


@dataclass(frozen=True)
class _Record:
    """TABLE.csv.json."""

    format: str
    plan: dict[str, Any]
    report: dict[str, Any]
    sha256: str
    files: dict[str, str] | None = None


class PredictionTable(Artifact[Counts]):
    """TABLE.csv, and TABLE.csv.json beside it."""

    noun = "table of predictions"
    endings = (".csv", ".txt")
    config = PredictConfig

    @property
    def record_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def refuse_foreign(self) -> None:
        """Raise UsageError for a file that is there and is no table of predictions."""
        with disk_errors(self.path):
            if not os.path.lexists(self.path):
                return
            refuse_special_file(self.path)
            with self.path.open("rb") as file:
                if file.read(len(FIRST_COLUMNS)) != FIRST_COLUMNS:
                    raise UsageError(
                        f"{self.path} exists and is not a table of predictions; choose another name with -o"
                    )

    def refuse_foreign_record(self) -> None:
        """Raise UsageError for a record that is there and is none of a table of predictions."""
        if not os.path.lexists(self.record_path):
            return
        refuse_special_file(self.record_path)
        try:
            found = read_json_file(self.record_path)
        except FileFormatError:
            found = None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UsageError(
                f"{self.record_path} exists and is not of a table of predictions; choose another name with -o"
            )

    def read(self) -> Stored[Counts] | None:
        self.refuse_foreign()
        if not self.path.is_file():
            self.refuse_foreign_record()
        if not (self.path.is_file() and self.record_path.is_file()):
            return None  # a table without its record is made again
        try:
            found = convert(read_json_file(self.record_path), _Record, str(self.record_path))
            if found.format != FORMAT:
                raise FileFormatError(f"its format is {found.format!r}")
        except FileFormatError as error:
            raise PlanMismatch(
                f"{self.record_path} should say what made {self.path.name}, and does not; delete both and run again "
                f"({error})"
            ) from error
        plan, counts, digest, images = found.plan, found.report, found.sha256, found.files
        return Stored(plan, {**counts, "sha256": digest}, images)

    def take_finished(self, plan: Mapping[str, Any], images: Any = None) -> Counts | None:
        counts = super().take_finished(plan, images)
        if counts is not None and sha256_of_file(self.path) != counts.pop("sha256"):
            raise PlanMismatch(
                f"{self.path} was changed after it was made; rename it, or delete it to have it made again"
            )
        return counts

    def commit(self, plan: Mapping[str, Any], counts: Counts, images: Mapping[str, str]) -> None:
        """Write the record, after the table: a table without a record can be made again.

        Args:
            images: the record of the images; empty for a table of a features file.
        """
        digest = sha256_of_file(self.path)
        write_json(
            self.record_path, {"format": FORMAT, "plan": plan, "report": counts, "files": images, "sha256": digest}
        )


def write_best(
    table: Path,
    classes: Sequence[str],
    paths: Sequence[str],
    outputs: npt.NDArray[np.floating],
    errors: Mapping[int, str],
    *,
    top: int,
    what: str,
) -> None:
    """One line per image with its best classes: path, class, probability, class2, probability2, ..., error.

    Args:
        what: the name of the numbers' columns: "probability" or "score".
    """
    numbers = ["", *(str(place) for place in range(2, top + 1))]
    best = np.argsort(-outputs, axis=1, kind="stable")[:, :top]
    with (
        replacing(table) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", *(f"{name}{n}" for n in numbers for name in ("class", what)), "error"])
        for row, path in enumerate(paths):
            found = [word for place in best[row] for word in (classes[place], f"{outputs[row, place]:.6g}")]
            writer.writerow([path, *([""] * 2 * top if row in errors else found), errors.get(row, "")])


def write_table(
    table: Path,
    classes: Sequence[str],
    paths: Sequence[str],
    chosen: Iterable[str | None],
    outputs: npt.NDArray[np.floating],
    errors: Mapping[int, str],
    *,
    numbers: bool = False,
) -> None:
    """One line per image; the class and the scores of those that failed are empty.

    Args:
        numbers: `classes` are names of numbers, which have columns of their names and no class.
    """
    # surrogateescape: file names that are not UTF-8 come out as the bytes they are.
    with (
        replacing(table) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        columns = classes if numbers else ["class", *(f"score:{name}" for name in classes)]
        writer.writerow(["path", *columns, "error"])
        for row, (path, name) in enumerate(zip(paths, chosen, strict=True)):
            scores = [""] * len(classes) if name is None else [f"{v:.6g}" for v in outputs[row]]
            writer.writerow([path, *([] if numbers else [name or ""]), *scores, errors.get(row, "")])
