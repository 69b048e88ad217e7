"""`featx concat`: features files with the same recipe, their rows behind each other, in one file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.artifacts.features_file import FeaturesFile
from featx.errors import PlanMismatch, UsageError
from featx.heads.labels import refuse_divided
from featx.images.contents import files_state
from featx.images.manifest import Manifest, Skipped, make_manifest
from featx.images.sources.containers import root_of
from featx.images.sources.remote import place_of
from featx.images.sources.reopen import listed_path
from featx.runtime.files import replacing
from featx.runtime.progress import ALREADY_THERE, SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.signals import graceful_stop
from featx.runtime.text import format_bytes, plural
from featx.status import Status
from featx.store.copying import copy_files
from featx.store.open import JoinedFeatures, open_features
from featx.store.reader import Features
from featx.store.schema import FilePlan
from featx.store.writer import FeatureWriter


@dataclass(frozen=True)
class ConcatReport(Report):
    """What was joined.

    Attributes:
        listed: the CSV of all images, which is written where they are of several sources; else None.
    """

    output: Path
    listed: Path | None
    files: int
    images: int
    failed: int
    bytes: int

    def lines(self) -> list[str]:
        text = (
            f"{self.output}: {plural(self.images, 'image')} of {plural(self.files, 'file')}, {self.failed:,} failed"
        )
        text += f", {format_bytes(self.bytes)}"
        return [text] if self.listed is None else [text, f"{self.listed}: its images, for featx extract and verify"]


def concat_features(
    files: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], *, reporter: Reporter = SILENT
) -> ConcatReport:
    """Join features files that were made with the same settings; classes and splits are joined by name.

    Images of several sources are listed in a CSV beside the output, NAME.csv, which becomes its source. The same call
    again resumes a run that was interrupted, or does nothing if it is finished. The files are kept.

    Raises:
        UsageError: fewer than two files; images in several zips; a NAME.csv that is another.
        FileFormatError: a file is damaged or not finished.
        PlanMismatch: they were made with different settings or versions, or the output is something else.
        DiskError: it does not fit, or the disk failed.
    """
    output = Path(output)
    parts = [open_features(path) for path in files]
    if len(parts) < 2:
        raise UsageError("concat joins several files; one is joined already")
    joined = JoinedFeatures(parts)
    _refuse_other_versions(parts)
    images, listed = _images(parts, joined, output)
    plan = _plan(parts, joined, images)
    finished = FeaturesFile(output, reporter).take_finished(plan.provenance)
    if finished is not None:
        reporter.note(ALREADY_THERE)
        return _report(output, listed, parts)
    if listed is not None:
        _write_list(images, listed)
    with FeatureWriter.open(output, plan) as writer, graceful_stop() as stop:
        reporter.begin("concat", len(joined))
        copy_files(parts, writer, stop, reporter.advance)
        reporter.end()
        writer.finish()
    return _report(output, listed, parts)


def _refuse_other_versions(parts: Sequence[Features]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if part.provenance["versions"] != first.provenance["versions"]:
            made, other = first.provenance["versions"], part.provenance["versions"]
            name = next(key for key in {**made, **other} if made.get(key) != other.get(key))
            raise PlanMismatch(
                f"{first.path} was made with {name} {made.get(name)}, {part.path} with {other.get(name)}: their rows "
                f"are rounded differently. featx.open_features(a, b) opens them together without writing them as one"
            )


def _images(parts: Sequence[Features], joined: JoinedFeatures, output: Path) -> tuple[Manifest, Path | None]:
    """All images, and the CSV they are listed in; None if all are of one source."""
    groups = [name or None for name in joined.groups] or None
    sources = {(part.provenance["source"]["path"], part.source_kind) for part in parts}
    labels = [None if label < 0 else joined.classes[label] for label in joined.labels.tolist()]
    splits = [None if split < 0 else joined.splits[split] for split in joined.split_of.tolist()]
    if len(sources) == 1:
        place, kind = Path(sources.pop()[0]), parts[0].source_kind
        root = root_of(kind, place)
        paths = [path for part in parts for path in part.raw_paths]
        return make_manifest(kind, place, root, paths, labels, splits, Skipped(), groups), None
    for part in parts:
        refuse_divided(part.classes, part.source_kind, str(part.path))
    listed = output.absolute().with_suffix(".csv")
    paths = [
        listed_path(listed.parent, part.source_kind, Path(part.provenance["source"]["path"]), path, str(part.path))
        for part in parts
        for path in part.raw_paths
    ]
    return make_manifest("csv", listed, listed.parent, paths, labels, splits, Skipped(), groups), listed


def _plan(parts: Sequence[Features], joined: JoinedFeatures, images: Manifest) -> FilePlan:
    first = parts[0]
    provenance: dict[str, Any] = {
        **{key: value for key, value in first.provenance.items() if key != "shard"},
        "images": images.digest,
        "count": len(images),
        "source": {"path": place_of(images.source), "kind": images.kind, "files": files_state(images)},
        "parts": [{"fingerprint": part.fingerprint, "count": len(part)} for part in parts],
    }
    return FilePlan(
        images.paths, images.labels, images.classes, images.split_of, images.splits, list(joined.layers.values()),
        provenance, first.projections, images.groups,
    )  # fmt: skip


def _write_list(images: Manifest, path: Path) -> None:
    """path,label[,split][,group] of all images.

    Raises:
        UsageError: there is another file of that name.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", *(["split"] if images.splits else []), *(["group"] if images.groups else [])])
    for row, (name, label, split) in enumerate(zip(images.paths, images.labels, images.split_of, strict=True)):
        own = [images.splits[split] if split >= 0 else ""] if images.splits else []
        own += [images.groups[row]] if images.groups else []
        writer.writerow([os.fsdecode(name), images.classes[label] if label >= 0 else "", *own])
    content = text.getvalue().encode(errors="surrogateescape")
    if path.exists():
        if path.read_bytes() != content:
            raise UsageError(f"{path} is there and is another list; rename it, or choose another output with -o")
        return
    with replacing(path) as partial:
        partial.write_bytes(content)


def _report(output: Path, listed: Path | None, parts: Sequence[Features]) -> ConcatReport:
    made = Features(output)
    failed = int((made.status > Status.DONE).sum())
    return ConcatReport(output, listed, len(parts), len(made), failed, output.stat().st_size)
