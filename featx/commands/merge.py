"""`featx merge`: the shards of a job become the file that one process would have made, to the last byte."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifacts.features_file import FeaturesFile
from featx.errors import FileFormatError, PlanMismatch, UsageError
from featx.images.contents import sum_of_states
from featx.runtime.progress import ALREADY_THERE, SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.signals import graceful_stop
from featx.runtime.text import format_bytes, plural
from featx.status import Status
from featx.store.copying import copy_files
from featx.store.open import open_features
from featx.store.reader import Features
from featx.store.schema import FilePlan, differences, essence, partial_path
from featx.store.writer import FeatureWriter

_OWN = ("shard", "images", "count")  # what only this shard's provenance says
_SHARD_NAME = re.compile(r"\.\d+-of-\d+(\.(?!partial)[^.]*)?$")


@dataclass(frozen=True)
class MergeReport(Report):
    """What a merge made.

    Attributes:
        images, done, failed: rows of the file; of these successful; of these failed.
        shards: how many files were joined.
    """

    output: Path
    images: int
    done: int
    failed: int
    shards: int
    bytes: int

    def lines(self) -> list[str]:
        text = f"{self.output}: {self.done:,} of {plural(self.images, 'image')} from {plural(self.shards, 'shard')}"
        return [f"{text}, {format_bytes(self.bytes)}"]


def merge_shards(
    shards: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], *, reporter: Reporter = SILENT
) -> MergeReport:
    """Join the files of `extract --shard 0/N .. N-1/N`.

    The same call again resumes a merge that was interrupted, or does nothing if it is finished. The shards are kept.

    Args:
        shards: files, or folders whose files called NAME.I-of-N... are meant.
        output: the features file; NAME.partial until it is finished.

    Raises:
        UsageError: no shards, one is missing or given twice.
        FileFormatError: a shard is damaged or not finished.
        PlanMismatch: they are not of one job, or the output belongs to another.
        DiskError: it does not fit, or the disk failed.
    """
    output = Path(output)
    parts = _complete_job([open_features(path) for path in _files(shards)])
    plan = _whole_plan(parts)
    finished = FeaturesFile(output, reporter).take_finished(plan.provenance)
    if finished is not None:
        _refuse_other_rows(finished, parts)
        reporter.note(ALREADY_THERE)
        return _report(output, len(parts))
    partial = partial_path(output)
    if partial.exists() and (have := open_features(partial, partial=True)).fingerprint == plan.fingerprint:
        _refuse_other_rows(have, parts)
    writer = FeatureWriter.open(output, plan)
    with writer, graceful_stop() as stop:
        reporter.begin("merge", len(plan.paths))
        copy_files(parts, writer, stop, reporter.advance)
        reporter.end()
        writer.finish()
    return _report(output, len(parts))


def _refuse_other_rows(have: Features, parts: Sequence[Features]) -> None:
    """Refuse a merge, finished or not, of the same job whose shards have changed since: failed images tried again."""
    done = have.status > Status.PENDING
    for name in ("status", "sha256"):
        rows = np.concatenate([getattr(part, name) for part in parts])
        if not np.array_equal(getattr(have, name)[done], rows[done]):
            raise PlanMismatch(f"{have.path} was merged before the shards became what they are now; delete it")


def _files(shards: Sequence[str | os.PathLike[str]]) -> list[Path]:
    found: list[Path] = []
    for given in map(Path, shards):
        if given.is_dir():
            found += [path for path in sorted(given.iterdir()) if _SHARD_NAME.search(path.name)]
        else:
            found.append(given)
    if not found:
        raise UsageError(f"no shards in {', '.join(map(str, shards))}; featx extract --shard I/N makes them")
    return found


def _complete_job(files: Sequence[Features]) -> list[Features]:
    """The shards in order, of one job, each once and none missing."""
    by_index: dict[int, Features] = {}
    first = files[0]
    for file in files:
        shard = file.provenance.get("shard")
        if shard is None:
            raise UsageError(f"{file.path} is not a shard: it was made without --shard")
        named = differences(_common(first), _common(file))
        if named:
            raise PlanMismatch(
                f"{first.path} and {file.path} are not of one job: {named[0].key} {named[0].stored} in "
                f"one, {named[0].asked} in the other"
            )
        if shard["index"] in by_index:
            raise UsageError(
                f"{by_index[shard['index']].path} and {file.path} are both part {shard['index']} of {shard['count']}"
            )
        by_index[shard["index"]] = file
    count = first.provenance["shard"]["count"]
    missing = [str(index) for index in range(count) if index not in by_index]
    if missing:
        names = f"shard {missing[0]}" if len(missing) == 1 else f"shards {', '.join(missing[:10])}"
        raise UsageError(f"{names} of {count} {'is' if len(missing) == 1 else 'are'} missing")
    parts = [by_index[index] for index in range(count)]
    total = sum(map(len, parts))
    if total != first.provenance["shard"]["total"]:
        raise FileFormatError(f"the shards hold {total} images, the job had {first.provenance['shard']['total']}")
    return parts


def _common(file: Features) -> dict[str, Any]:
    """What must be the same in all shards of a job."""
    shard = file.provenance["shard"]
    common = {key: value for key, value in essence(file.provenance).items() if key not in _OWN}
    return common | {
        "shards": shard["count"],
        "images": shard["images"],
        "classes": file.classes,
        "splits": file.splits,
    }


def _whole_plan(parts: Sequence[Features]) -> FilePlan:
    """The plan that one process would have had."""
    first = parts[0]
    shard = first.provenance["shard"]
    whole = {**first.provenance, "images": shard["images"], "count": shard["total"]}
    del whole["shard"]
    files = sum_of_states(part.provenance["source"].get("files") for part in parts)
    whole["source"] = {**first.provenance["source"], "files": files}
    return FilePlan(
        paths=[path for part in parts for path in part.raw_paths],
        labels=np.concatenate([part.labels for part in parts]).tolist(),
        classes=first.classes,
        split_of=np.concatenate([part.split_of for part in parts]).tolist(),
        splits=first.splits,
        layers=list(first.layers.values()),
        provenance=whole,
        projections=first.projections,
        groups=[name for part in parts for name in part.groups],
    )


def _report(output: Path, shards: int) -> MergeReport:
    features = Features(output)
    done, failed = features.count(Status.DONE), int((features.status > Status.DONE).sum())
    return MergeReport(output, len(features), done, failed, shards, output.stat().st_size)
