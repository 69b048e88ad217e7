"""`featx import`: the Parquet files of a Ray job become one features file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifacts.features_file import FeaturesFile
from featx.errors import FileFormatError, Interrupted
from featx.runtime.progress import ALREADY_THERE, SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.signals import graceful_stop
from featx.runtime.stored import read_json_file
from featx.runtime.text import format_bytes, plural
from featx.status import Status
from featx.store.copying import runs_of
from featx.store.parquet_rows import PLAN, rows_of_table
from featx.store.reader import Features
from featx.store.schema import FilePlan, LayerSpec
from featx.store.writer import FeatureWriter


@dataclass(frozen=True)
class ImportReport(Report):
    """What was written."""

    output: Path
    images: int
    failed: int
    files: int
    bytes: int

    def lines(self) -> list[str]:
        text = f"{self.output}: {plural(self.images, 'image')} of {plural(self.files, 'Parquet file')}, "
        return [text + f"{self.failed:,} failed, {format_bytes(self.bytes)}"]


def import_parquet(
    folder: str | os.PathLike[str], output: str | os.PathLike[str], *, reporter: Reporter = SILENT
) -> ImportReport:
    """Sort the rows of a folder that `extract_with_ray` has made into a features file.

    It has the bytes of the file that `extract_features` makes of the same images. The same call again resumes an
    interrupted one, or does nothing.

    Raises:
        FileFormatError: the folder is none of those, or rows are missing or there twice.
        PlanMismatch: the output is something else.
        DiskError: it does not fit, or the disk failed.
    """
    import pyarrow.parquet as pq

    folder, output = Path(folder), Path(output)
    plan = _plan(folder)
    files = sorted(folder.glob("*.parquet"))
    finished = FeaturesFile(output, reporter).take_finished(plan.provenance)
    if finished is not None:
        reporter.note(ALREADY_THERE)
        return _report(output, len(files))
    shapes = {layer.name: (layer.shape, layer.dtype) for layer in plan.layers}
    with FeatureWriter.open(output, plan) as writer, graceful_stop() as stop:
        seen = np.zeros(len(plan.paths), np.int64)
        reporter.begin("import", len(plan.paths))
        for file in files:
            if stop.is_set():
                raise Interrupted(
                    f"stopped by signal {stop.signal}; run the same command again to resume", 128 + (stop.signal or 0)
                )
            try:
                found = rows_of_table(pq.read_table(file), shapes)
            except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are of these kinds
                raise FileFormatError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
            _write(writer, found, seen, file)
            reporter.advance(len(found["row"]))
        reporter.end()
        if (seen != 1).any():
            row = int(np.flatnonzero(seen != 1)[0])
            what = "is missing" if seen[row] == 0 else "is there more than once"
            raise FileFormatError(f"{folder}: row {row} of {len(seen):,} {what}")
        writer.finish()
    return _report(output, len(files))


def _write(writer: FeatureWriter, found: dict[str, Any], seen: Any, file: Path) -> None:
    order = np.argsort(found["row"], kind="stable")
    rows = found["row"][order].tolist()
    if rows and not 0 <= rows[0] <= rows[-1] < len(seen):
        raise FileFormatError(f"{file} holds row {rows[-1]}, and the job has {len(seen):,}")
    np.add.at(seen, rows, 1)
    if (seen[rows] > 1).any():
        raise FileFormatError(f"{file} holds rows that were there before")
    for part in runs_of(rows, len(rows)):
        places = order[part]
        if (writer.status[rows[part.start] : rows[part.stop - 1] + 1] != Status.PENDING).all():
            continue
        writer.write_block(
            rows[part.start],
            {name: values[places] for name, values in found["features"].items()},
            **{name: found[name][places] for name in ("status", "sha256", "orientation", "decoder")},
            reasons={at: found["reason"][place] for at, place in enumerate(places) if found["reason"][place]},
        )


def _plan(folder: Path) -> FilePlan:
    path = folder / PLAN
    if not path.is_file():
        raise FileFormatError(f"{folder} has no {PLAN}; import takes the folders that featx.extract_with_ray makes")
    try:
        found = read_json_file(path)
        layers = [LayerSpec(**{**layer, "shape": tuple(layer["shape"])}) for layer in found["layers"]]
        paths = [os.fsencode(name) for name in found["paths"]]
        found.pop("job", None)  # what its actors had to know
        return FilePlan(**{**found, "paths": paths, "layers": layers})
    except (TypeError, KeyError, ValueError) as error:
        raise FileFormatError(f"{path} is not the plan of a features file: {error}") from error


def _report(output: Path, files: int) -> ImportReport:
    made = Features(output)
    failed = int((made.status > Status.DONE).sum())
    return ImportReport(output, len(made), failed, files, output.stat().st_size)
