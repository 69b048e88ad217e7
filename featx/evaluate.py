"""`featx evaluate`: how good is a head on labelled features it has not seen?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featx.config import EvaluateConfig, PredictConfig
from featx.errors import LabelError
from featx.heads.labels import labels_among
from featx.heads.linear import LinearHead
from featx.heads.metrics import LabelMetrics, Metrics, measure, metric_lines
from featx.images.scan import scan
from featx.networks.names import PROB
from featx.networks.runs import Run, is_run, read_run
from featx.predict import layer_for, run_outputs
from featx.progress import SILENT, Reporter
from featx.report import Report
from featx.store.reader import open_features


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
        return [
            f"{self.head} ({self.kind} on {self.layer}) on {self.images:,} images of {self.features}{left_out}",
            *metric_lines(self.metrics),
        ]


def evaluate_head(
    head: str | os.PathLike[str],
    features: str | os.PathLike[str],
    config: EvaluateConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> EvaluateReport:
    """Score the labelled rows of a features file with a head, or labelled images with a fine-tuned network.

    Args:
        head: a head, or the folder of a fine-tuned network.
        features: a features file; for a fine-tuned network images, as for `extract_features`.

    Raises:
        FeaturesMismatch: the file holds other features than the head takes.
        LabelError: no labelled image of a class the head knows.
    """
    config = config or EvaluateConfig()
    if is_run(str(head)):
        return _evaluate_run(read_run(head), Path(features), config, reporter)
    loaded, opened = LinearHead.load(head), open_features(features)
    layer = layer_for(loaded, opened)
    rows = opened.usable(config.split)
    labels = labels_among(loaded.classes, opened.classes, opened.labels[rows], loaded.multilabel)
    known = labels.any(axis=1) if loaded.multilabel else labels >= 0
    rows, labels = rows[known], labels[known]
    if not len(rows):
        raise LabelError(
            f"{features} has no image of the classes the head knows ({', '.join(map(repr, loaded.classes[:5]))})"
        )
    values = opened[layer].reshape(len(opened), -1)
    return EvaluateReport(
        head=Path(head),
        features=Path(features),
        kind=loaded.kind,
        layer=layer,
        images=len(rows),
        left_out=len(opened) - len(rows),
        metrics=loaded.measure(values[rows], labels),
    )


def _evaluate_run(run: Run, source: Path, config: EvaluateConfig, reporter: Reporter) -> EvaluateReport:
    manifest = scan(source)
    wanted = np.ones(len(manifest), bool)
    if config.split is not None:
        if config.split not in manifest.splits:
            have = ", ".join(manifest.splits) or "none"
            raise LabelError(f"{source} has no split {config.split!r}; its splits: {have}")
        wanted = np.array(manifest.split_of) == manifest.splits.index(config.split)
    labels = labels_among(run.classes, list(manifest.classes), np.array(manifest.labels), multilabel=False)
    rows = np.flatnonzero(wanted & (labels >= 0))
    if not len(rows):
        raise LabelError(f"{source} has no image of the classes of {run.folder} ({', '.join(run.classes[:5])}, ...)")
    _, outputs, errors = run_outputs(run, manifest.part(rows.tolist()), PredictConfig(), reporter)
    good = np.array([row not in errors for row in range(len(rows))])
    return EvaluateReport(
        head=run.folder,
        features=source,
        kind="network",
        layer=PROB,
        images=int(good.sum()),
        left_out=len(manifest) - int(good.sum()),
        metrics=measure(outputs[good], labels[rows][good].astype(np.int64), run.classes),
    )
