"""How good a head or network is on labelled images, as an output."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import Artifact, Stored
from featx.errors import FileFormatError, UsageError
from featx.heads.excluded import excluded_text
from featx.heads.quality.measures import Measures
from featx.heads.quality.metrics import AnyMetrics, metric_lines, read_metrics
from featx.runtime.files import disk_errors, refuse_special_file
from featx.runtime.report import Report
from featx.runtime.stored import build, convert, read_json_file
from featx.runtime.text import plural

FORMAT = "featx evaluation"


@dataclass(frozen=True)
class EvaluateReport(Report):
    """A head's quality on a features file.

    Attributes:
        left_out: images that are not measured.
        excluded: these by reason.
        lesion: units that were silent; empty for the network as it is.
        trained_on: measured images that the head was trained on, by their bytes; None where the head does not say.
        measures: more about the scores; None of several classes per image.
    """

    head: Path
    features: Path
    kind: str
    layer: str
    images: int
    left_out: int
    metrics: AnyMetrics
    excluded: dict[str, int] = field(default_factory=dict)
    trained_on: int | None = None
    lesion: str = ""
    measures: Measures | None = None

    def lines(self) -> list[str]:
        images = plural(self.images, "image")
        text = [
            f"{self.head} ({self.kind} on {self.layer}) on {images} of {self.features}{excluded_text(self.excluded)}",
            *metric_lines(self.metrics),
        ]
        if self.measures is not None:
            text += self.measures.lines()
        if self.lesion:
            text.insert(1, f"with silent units, --lesion {self.lesion}: it is not the network as it was trained")
        if self.trained_on:
            text.append(
                f"note: {self.trained_on:,} of these images are among those it was trained on, so this says little "
                f"of images it has not seen"
            )
        return text


@dataclass(frozen=True)
class Scored:
    """The images behind a report.

    Attributes:
        scores: (n, K), which decide.
        outputs: (n, K), which rank the images: probabilities where there are some.
        labels: (n,) indices, or membership (n, K).
        paths: n.
        content: position -> the image's file; BadImage if it cannot be read any more.
    """

    scores: npt.NDArray[np.float64]
    outputs: npt.NDArray[np.float64]
    labels: npt.NDArray[Any]
    paths: Sequence[bytes]
    content: Callable[[int], bytes]


class Evaluation(Artifact[EvaluateReport]):
    """A report, stored as JSON."""

    noun = "report"
    endings = (".json",)

    def read(self) -> Stored[EvaluateReport] | None:
        with disk_errors(self.path):
            if not os.path.lexists(self.path):
                return None
            refuse_special_file(self.path)
        try:
            found = read_json_file(self.path)
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                raise FileFormatError("it has another format")
            where = f"{self.path}, report"
            plan = convert(found.get("plan"), dict[str, Any], f"{self.path}, plan")
            report = convert(found.get("report"), dict[str, Any], where)
            metrics = read_metrics(report.get("metrics"), f"{where}, metrics")
            stored = report.get("measures")
            measures = None if stored is None else build(Measures, stored, f"{where}, measures")
            made = build(EvaluateReport, report, where, metrics=metrics, measures=measures)
            return Stored(plan, made, found.get("files") or None)
        except FileFormatError as error:
            raise UsageError(
                f"{self.path} exists and is not a report of featx evaluate; choose another name with -o ({error})"
            ) from error
