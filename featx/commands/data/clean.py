"""`featx clean`: the images of a features file as a list, without those that were ticked."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

from featx.errors import FileFormatError, UsageError
from featx.heads.labels import refuse_divided
from featx.images.sources.reopen import listed_path
from featx.runtime.files import disk_errors, refuse_special_file, replacing
from featx.runtime.report import Report
from featx.runtime.text import plural, printable
from featx.store.open import open_features
from featx.store.reader import Features

_NEEDED = {"remove", "row", "path"}
_TICKS = {"x", "1", "yes", "true", "remove"}
_NO_TICKS = {"", "0", "no", "false"}


@dataclass(frozen=True)
class CleanReport(Report):
    """The list that was written."""

    output: Path
    images: int
    removed: int

    def lines(self) -> list[str]:
        return [f"{self.output}: {plural(self.images, 'image')}, without {self.removed:,} that were ticked"]


def clean_list(
    features: str | os.PathLike[str], suspects: str | os.PathLike[str], output: str | os.PathLike[str]
) -> CleanReport:
    """Write a list of the images of a features file, without those that were ticked in a table of suspects.

    The columns are `path,label[,split][,group]`. An image is left out if one of its rows has x, 1, yes, true or
    remove in the column `remove`. The list is a source for every command that takes images; its paths are relative to
    its folder, or absolute.

    Args:
        suspects: suspects.csv as `find_suspects` writes it, or its page saves it.

    Raises:
        UsageError: the table is of other images; the images are in an archive, whose files no list can name.
        FileFormatError: the table is none.
    """
    opened, path, target = open_features(features), Path(suspects), Path(output)
    if target.suffix.lower() != ".csv":
        raise UsageError(f"-o {target.name}: a list is written; call it {target.stem}.csv")
    refuse_divided(opened.classes, opened.source_kind, str(opened.path))
    ticked = _ticked(path, opened)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    extra = [*(["split"] if opened.splits else []), *(["group"] if opened.groups else [])]
    writer.writerow(["path", "label", *extra])
    folder = target.absolute().parent
    place, kind = Path(opened.provenance["source"]["path"]), opened.source_kind
    for row in range(len(opened)):
        if row in ticked:
            continue
        name = listed_path(folder, kind, place, opened.raw_paths[row], str(opened.path))
        label, split = int(opened.labels[row]), int(opened.split_of[row])
        own = [opened.splits[split] if split >= 0 else ""] if opened.splits else []
        own += [opened.groups[row]] if opened.groups else []
        writer.writerow([os.fsdecode(name), opened.classes[label] if label >= 0 else "", *own])
    content = text.getvalue().encode(errors="surrogateescape")
    with disk_errors(target):
        if target.exists() and target.read_bytes() != content:
            raise UsageError(f"{target} is there and is another list; choose another name with -o, or delete it")
    with replacing(target) as partial:
        partial.write_bytes(content)
    return CleanReport(target, len(opened) - len(ticked), len(ticked))


def _ticked(path: Path, features: Features) -> set[int]:
    """Rows of the features file.

    Raises:
        UsageError, FileFormatError: as for `clean_list`.
    """
    refuse_special_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if not set(reader.fieldnames or ()) >= _NEEDED:
                raise FileFormatError(f"{path} is no table of suspects: it needs the columns remove, row and path")
            found = set()
            for number, line in enumerate(reader, start=2):
                tick = str(line["remove"] or "").strip().lower()
                if tick not in _NO_TICKS | _TICKS:
                    raise UsageError(
                        f"{path}, line {number}: remove is {printable(tick)!r}; x removes the image, nothing keeps it"
                    )
                row = int(line["row"]) if str(line["row"]).isdigit() else -1
                if not 0 <= row < len(features) or _readable(features.paths[row]) != _readable(str(line["path"])):
                    raise UsageError(
                        f"{path}, line {number}: row {printable(str(line['row']))} of {features.path} is not "
                        f"{printable(str(line['path']))}; the table is of other features"
                    )
                if tick in _TICKS:
                    found.add(row)
            return found
    except FileNotFoundError:
        raise FileFormatError(f"no file {path}") from None
    except csv.Error as error:
        raise FileFormatError(f"{path} is no CSV: {error}") from error
    except OSError:
        with disk_errors(path):
            raise


def _readable(path: str) -> str:
    """A path as a browser saves it: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")
