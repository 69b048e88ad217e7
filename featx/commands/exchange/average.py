"""`featx average`: features of several images of one thing, or of the frames of a clip, as one row: their mean."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.features_file import FeaturesFile
from featx.errors import Interrupted, UsageError
from featx.images.contents import group_names
from featx.images.manifest import Manifest
from featx.images.sources.video.clips import clip_of
from featx.options.exchange import AverageConfig
from featx.runtime.progress import ALREADY_THERE, SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.signals import graceful_stop
from featx.runtime.text import format_bytes, plural, printable
from featx.status import Status
from featx.store.copying import rows_at_once
from featx.store.open import open_features
from featx.store.reader import Features
from featx.store.schema import FilePlan
from featx.store.writer import FeatureWriter


@dataclass(frozen=True)
class AverageReport(Report):
    """What was averaged.

    Attributes:
        rows: of the file.
        groups: rows of the output.
        failed: groups without any image that succeeded.
    """

    output: Path
    rows: int
    groups: int
    failed: int
    bytes: int

    def lines(self) -> list[str]:
        return [
            f"{self.output}: {plural(self.groups, 'mean')} of {plural(self.rows, 'row')}, {self.failed:,} failed, "
            f"{format_bytes(self.bytes)}"
        ]


def average_features(
    features: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: AverageConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> AverageReport:
    """Write a features file with the mean of the rows of each clip, or of each group that a pattern tells.

    Images that failed are left out of their mean; a group of nothing else is a failed row. Groups are in the order of
    their first rows. The same call again resumes a run that was interrupted, or does nothing if it is finished.

    Raises:
        UsageError: nothing to group by; a path without a group; a group with several labels or splits.
        PlanMismatch: the output is something else.
    """
    config, output = config or AverageConfig(), Path(output)
    opened = open_features(features)
    names, group_of = _groups(opened, config.by)
    images = _manifest(opened, names, group_of)
    provenance: dict[str, Any] = {
        **opened.provenance,
        "images": images.digest,
        "count": len(images),
        "averaged": {"by": config.by or "clip", "rows": len(opened), "digest": opened.digest},
    }
    plan = FilePlan(
        images.paths, images.labels, images.classes, images.split_of, images.splits, list(opened.layers.values()),
        provenance, opened.projections,
    )  # fmt: skip
    if FeaturesFile(output, reporter).take_finished(provenance) is not None:
        reporter.note(ALREADY_THERE)
        return _report(output, opened)
    order = np.argsort(group_of, kind="stable")
    ends = np.searchsorted(group_of[order], np.arange(len(names) + 1))
    at_once = rows_at_once(sum(layer.bytes_per_image for layer in opened.layers.values()))
    with FeatureWriter.open(output, plan) as writer, graceful_stop() as stop:
        reporter.begin("average", len(names))
        for first in writer.pending_blocks(at_once):
            if stop.is_set():
                raise Interrupted(
                    f"stopped by signal {stop.signal}; run the same command again to resume", 128 + (stop.signal or 0)
                )
            groups = [
                order[ends[group] : ends[group + 1]] for group in range(first, min(first + at_once, len(names)))
            ]
            _write(writer, opened, first, groups)
            reporter.advance(len(groups))
        reporter.end()
        writer.finish()
    return _report(output, opened)


def _groups(features: Features, by: str | None) -> tuple[list[bytes], npt.NDArray[np.intp]]:
    """The names of the groups, in the order of their first rows, and the group of every row."""
    if by is None:
        if features.source_kind != "video":
            raise UsageError(f"{features.path} is not of videos; say what belongs together: --by REGEX")
        names = [clip_of(path) for path in features.raw_paths]
    else:
        names = group_names(features.raw_paths, by)
    number: dict[bytes, int] = {}
    group_of = np.array([number.setdefault(name, len(number)) for name in names], np.intp)
    return list(number), group_of


def _manifest(features: Features, names: Sequence[bytes], group_of: npt.NDArray[np.intp]) -> Manifest:
    """The groups as the images of a file."""
    first = np.unique(group_of, return_index=True)[1]
    for what, values in (("labels", features.labels), ("splits", features.split_of)):
        other = np.flatnonzero(values != values[first][group_of])
        if len(other):
            raise UsageError(f"{printable(names[group_of[other[0]]])} has rows of several {what}")
    source = features.provenance["source"]
    place = Path(source["path"])
    return Manifest(
        source["kind"], place, place, tuple(names), tuple(features.labels[first].tolist()), tuple(features.classes),
        tuple(features.split_of[first].tolist()), tuple(features.splits),
    )  # fmt: skip


def _write(writer: FeatureWriter, features: Features, first: int, groups: Sequence[npt.NDArray[np.intp]]) -> None:
    good = [rows[features.status[rows] == Status.DONE] for rows in groups]
    status = np.array([Status.DONE if len(rows) else Status.DAMAGED for rows in good], np.uint8)
    reasons = {
        place: f"none of its {len(groups[place])} rows is done" for place, rows in enumerate(good) if not len(rows)
    }
    means = {}
    for name, layer in features.layers.items():
        found = np.full((len(groups), *layer.shape), np.nan, layer.dtype)
        for place, rows in enumerate(good):
            if len(rows):
                found[place] = features[name][rows].mean(axis=0, dtype=np.float64)
        means[name] = found
    hashes = [hashlib.sha256(features.sha256[rows].tobytes()).digest() for rows in groups]
    writer.write_block(
        first, means, status=status, sha256=np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32),
        orientation=np.ones(len(groups), np.uint8),
        decoder=np.array([features.decoder[rows].max() for rows in groups], np.uint8), reasons=reasons,
    )  # fmt: skip


def _report(output: Path, features: Features) -> AverageReport:
    made = Features(output)
    failed = int((made.status > Status.DONE).sum())
    return AverageReport(output, len(features), len(made), failed, output.stat().st_size)
