"""A folder of pictures and the numbers behind them, as an output."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import Artifact, Stored, refuse_foreign_files, write_json
from featx.errors import FileFormatError
from featx.runtime.files import disk_errors, replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.stored import convert, read_json_file
from featx.runtime.text import table

RECORD = "show.json"
PARTS = "parts.partial"  # a folder of what is computed before the pictures are drawn


@dataclass(frozen=True)
class ShowReport(Report):
    """What a `featx show` has drawn.

    Attributes:
        files: names in the folder.
        columns, rows: a table of the numbers that can be read at a glance.
    """

    output: Path
    files: list[str]
    columns: list[str]
    rows: list[list[str]]

    def lines(self) -> list[str]:
        return [*table(self.columns, self.rows), f"saved in {self.output}: {', '.join(self.files)}"]


class ShownFolder(Artifact[ShowReport]):
    """FOLDER with pictures, an .npz, and show.json, which names them when all are there.

    Args:
        files: the names of what is to be written.
    """

    noun = "folder of pictures"

    def __init__(self, path: Path, files: Sequence[str], command: str, reporter: Reporter = SILENT) -> None:
        super().__init__(path, reporter)
        self.files, self.command = list(files), command

    def read(self) -> Stored[ShowReport] | None:
        path = self.path / RECORD
        if not path.exists():
            refuse_foreign_files(self.path, self.files, self.command)
            return None
        stored = convert(read_json_file(path), dict[str, Any], str(path))
        plan = convert(stored.get("plan", {}), dict[str, Any], f"{path}, plan")
        files = convert(stored.get("files", []), list[str], f"{path}, files")
        columns = convert(stored.get("columns", []), list[str], f"{path}, columns")
        rows = convert(stored.get("rows", []), list[list[str]], f"{path}, rows")
        if any(len(row) != len(columns) for row in rows) or not columns:
            raise FileFormatError(f"{path}: its rows do not fit its columns")
        whole = files and all((self.path / name).exists() for name in files)
        return Stored(plan, ShowReport(self.path, files, columns, rows) if whole else None)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Say whose files these are, before the first is written: the same command goes on after a kill."""
        write_json(self.path / RECORD, {"plan": plan, "files": [], "columns": ["unfinished"], "rows": []})

    def save_arrays(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write the numbers behind the pictures as .npz."""
        with replacing(self.path / name) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its keywords are arrays

    def remembered(
        self, key: str, compute: Callable[[], Mapping[str, npt.NDArray[Any]]]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """What an interrupted run has computed for a key, or what is computed now and kept until the end."""
        name = f"{PARTS}/{key}.npz"
        found = self.saved_arrays(name)
        if found is None:
            found = dict(compute())
            with disk_errors(self.path):
                (self.path / PARTS).mkdir(exist_ok=True)
            self.save_arrays(name, found)
        return found

    def saved_arrays(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """The numbers of an .npz that an interrupted run has left; None if it is not there."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise FileFormatError(f"{path} is damaged ({error}); delete it") from error

    def finish(self, plan: Mapping[str, Any], columns: list[str], rows: list[list[str]]) -> ShowReport:
        """Write the record: where it is, everything is."""
        report = ShowReport(self.path, self.files, columns, rows)
        kept = {"plan": plan, "files": self.files, "columns": columns, "rows": rows}
        write_json(self.path / RECORD, kept)
        shutil.rmtree(self.path / PARTS, ignore_errors=True)
        return report
