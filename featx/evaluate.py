"""`featx evaluate`: how good is a head on labelled features it has not seen?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from featx.config import EvaluateConfig
from featx.errors import FeaturesMismatch, LabelError
from featx.fit import metric_lines
from featx.heads.labels import labels_among
from featx.heads.linear import LinearHead, recipe_of
from featx.heads.metrics import LabelMetrics, Metrics
from featx.report import Report
from featx.store.reader import Features, open_features


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


def layer_for(head: LinearHead, features: Features) -> str:
    """The layer of a features file that a head takes.

    Raises:
        FeaturesMismatch: the file does not hold it, or it was made in another way.
    """
    layer = head.layer
    if layer not in features:
        raise FeaturesMismatch(
            f"the head was fitted on {head.recipe['backbone']} {layer}; {features.path} holds "
            f"{', '.join(features)}. Extract again with: {head.extract_command}"
        )
    recipe = recipe_of(features.provenance, layer, features.layers[layer].pooling)
    head.refuse_other_features(layer, recipe, str(features.path))
    return layer


def evaluate_head(
    head: str | os.PathLike[str], features: str | os.PathLike[str], config: EvaluateConfig | None = None
) -> EvaluateReport:
    """Score the labelled rows of a features file with a head.

    Raises:
        FeaturesMismatch: the file holds other features than the head takes.
        LabelError: no labelled image of a class the head knows.
    """
    loaded, opened = LinearHead.load(head), open_features(features)
    layer = layer_for(loaded, opened)
    rows = opened.usable((config or EvaluateConfig()).split)
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
