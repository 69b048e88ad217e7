"""`featx evaluate`: how good is a head on labelled features it has not seen?"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx import __version__
from featx.artifacts.artifact import READ_ERRORS, Artifact, Stored, write_json
from featx.errors import LabelError, TooManyBadImages, UsageError
from featx.extraction.model import Model, layer_for, load_model
from featx.extraction.scoring import StoredScores, score_images
from featx.heads.labels import labels_among
from featx.heads.linear_head import LinearHead
from featx.heads.metrics import LabelMetrics, Metrics, measure, metric_lines
from featx.images.manifest import Manifest
from featx.images.sources.scan import scan
from featx.networks.layer_names import PROB
from featx.options.extraction import EvaluateConfig, PredictConfig
from featx.runtime.files import disk_errors, is_hdf5, refuse_special_file
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.text import plural
from featx.store.open import open_features
from featx.store.reader import Features

FORMAT = "featx evaluation"


@dataclass(frozen=True)
class EvaluateReport(Report):
    """A head's quality on a features file; `left_out` are unlabelled, failed or of classes it does not know."""

    head: Path
    features: Path
    kind: str
    layer: str
    images: int
    left_out: int
    metrics: Metrics | LabelMetrics

    def lines(self) -> list[str]:
        left_out = f", {self.left_out:,} left out" if self.left_out else ""
        images = plural(self.images, "image")
        return [
            f"{self.head} ({self.kind} on {self.layer}) on {images} of {self.features}{left_out}",
            *metric_lines(self.metrics),
        ]


class Evaluation(Artifact[EvaluateReport]):
    """A report, stored as JSON."""

    noun = "report"

    def read(self) -> Stored[EvaluateReport] | None:
        with disk_errors(self.path):
            if not os.path.lexists(self.path):
                return None
            refuse_special_file(self.path)
            text = b"" if is_hdf5(self.path) else self.path.read_bytes()
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise ValueError
            plan, report = dict(found["plan"]), dict(found["report"])
            kind = LabelMetrics if "mean_average_precision" in report["metrics"] else Metrics
            report["metrics"] = kind(**report["metrics"])
            report["head"], report["features"] = Path(report["head"]), Path(report["features"])
            return Stored(plan, EvaluateReport(**report), found.get("files") or None)
        except READ_ERRORS as error:
            raise UsageError(
                f"{self.path} exists and is not a report of featx evaluate; choose another name with -o"
            ) from error


def evaluate_head(
    head: str | os.PathLike[str],
    features: str | os.PathLike[str],
    config: EvaluateConfig | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    reporter: Reporter = SILENT,
) -> EvaluateReport:
    """Score the labelled rows of a features file with a head, or labelled images with a fine-tuned network.

    Args:
        head: a head, or the folder of a fine-tuned network.
        features: a features file; for a fine-tuned network images, as for `extract_features`.
        output: where the report is kept as JSON. The same call again then reads it, or resumes where an interrupted
            one has stopped.

    Raises:
        FeaturesMismatch: the file holds other features than the head takes.
        LabelError: no labelled image of a class the head knows.
        PlanMismatch: the output is there and is the report of another evaluation.
        TooManyBadImages: more images failed than `config.max_bad` allows.
        Interrupted: a signal came.
    """
    config, model = config or EvaluateConfig(), load_model(head)
    kept = None if output is None else Evaluation(Path(output), reporter)
    if model.head is not None:
        opened = open_features(features)
        plan = _plan(model, opened.digest, config)
        finished = None if kept is None else kept.take_finished(plan)
        if finished is not None:
            return finished
        report = _evaluate_head(model.head, Path(head), opened, config.split, reporter)
        files: dict[str, str] = {}
    else:
        manifest = scan(features, follow_links=config.follow_links)
        plan = _plan(model, manifest.digest, config) | {"batch_size": config.batch_size}
        asked = PredictConfig(
            device=config.device, batch_size=config.batch_size, workers=config.workers, max_bad=config.max_bad
        )
        stored = None if kept is None else StoredScores(kept.path, model, asked, reporter)
        finished = None if kept is None else kept.take_finished(plan, lambda: _wanted(model, manifest, config.split))
        if finished is not None:
            if stored is not None:
                stored.discard()  # left there if the run was killed at its very end
            return finished
        wanted = _wanted(model, manifest, config.split)
        report, files = _evaluate_run(model, manifest, wanted, asked, reporter, stored)
    if kept is not None:
        write_json(kept.path, {"format": FORMAT, "plan": plan, "report": report.to_json(), "files": files})
        if model.run is not None and stored is not None:
            stored.discard()
    return report


def _plan(model: Model, images: str, config: EvaluateConfig) -> dict[str, Any]:
    return {"head": model.digest, "images": images, "split": config.split, "featx": __version__}


def _evaluate_head(
    loaded: LinearHead, head: Path, opened: Features, split: str | None, reporter: Reporter
) -> EvaluateReport:
    layer = layer_for(loaded, opened)
    if split is None and dict(loaded.report.get("plan", {})).get("features") == opened.digest:
        reporter.note(
            f"note: {head} was fitted on images of this very file, and they are among those that are scored; for "
            f"images it has not seen, see the fit's own report: run the same fit command again to print it"
        )
    rows = opened.usable(split)
    labels = labels_among(loaded.classes, opened.classes, opened.labels[rows], loaded.multilabel)
    known = labels.any(axis=1) if loaded.multilabel else labels >= 0
    rows, labels = rows[known], labels[known]
    if not len(rows):
        raise LabelError(
            f"{opened.path} has no image of the classes the head knows ({', '.join(map(repr, loaded.classes[:5]))})"
        )
    values = opened[layer].reshape(len(opened), -1)
    return EvaluateReport(
        head=head,
        features=opened.path,
        kind=loaded.kind,
        layer=layer,
        images=len(rows),
        left_out=len(opened) - len(rows),
        metrics=loaded.measure(values[rows], labels),
    )


def _evaluate_run(
    model: Model,
    manifest: Manifest,
    wanted: Manifest,
    config: PredictConfig,
    reporter: Reporter,
    stored: StoredScores | None,
) -> tuple[EvaluateReport, dict[str, str]]:
    source = Path(manifest.source)
    labels = labels_among(model.classes, list(manifest.classes), np.array(wanted.labels), multilabel=False)
    scored = score_images(model, wanted, config, reporter) if stored is None else stored.of_images(wanted)
    scored.refuse_too_many_bad(config.max_bad)
    good = np.array([row not in scored.errors for row in range(len(wanted))])
    if not good.any():
        first = scored.errors[min(scored.errors)]
        raise TooManyBadImages(f"none of the {plural(len(wanted), 'image')} of {source} could be read: {first}")
    report = EvaluateReport(
        head=model.path,
        features=source,
        kind="network",
        layer=PROB,
        images=int(good.sum()),
        left_out=len(manifest) - int(good.sum()),
        metrics=measure(scored.scores[good], labels[good].astype(np.int64), model.classes),
    )
    return report, scored.images


def _wanted(model: Model, manifest: Manifest, split: str | None) -> Manifest:
    """The images of a split, or of all, whose classes the network knows."""
    source, wanted = manifest.source, np.ones(len(manifest), bool)
    if split is not None:
        if split not in manifest.splits:
            have = ", ".join(manifest.splits) or "none"
            raise LabelError(f"{source} has no split {split!r}; its splits: {have}")
        wanted = np.array(manifest.split_of) == manifest.splits.index(split)
    labels = labels_among(model.classes, list(manifest.classes), np.array(manifest.labels), multilabel=False)
    rows = np.flatnonzero(wanted & (labels >= 0))
    if not len(rows):
        raise LabelError(
            f"{source} has no image of the classes of {model.path} ({', '.join(model.classes[:5])}, ...)"
        )
    return manifest.part(rows.tolist())
