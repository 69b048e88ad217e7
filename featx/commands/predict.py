"""`featx predict`: a head tells the class of images, or of features extracted before."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifacts.artifact import plan_of
from featx.artifacts.prediction_table import PredictionTable, write_table
from featx.errors import UsageError
from featx.extraction.model import layer_for, load_model
from featx.extraction.scoring import Scored, StoredScores
from featx.heads.linear_head import LinearHead
from featx.images.manifest import Manifest
from featx.images.sources.scan import scan
from featx.options.extraction import PredictConfig
from featx.options.without_effect.rule import Facts
from featx.options.without_effect.rules import notes_on
from featx.runtime.files import is_hdf5
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.stored import build
from featx.runtime.text import format_duration, plural, printable
from featx.status import Status
from featx.store.open import open_features
from featx.store.reader import Features

SHOWN_CLASSES = 12


@dataclass(frozen=True)
class PredictReport(Report):
    """What was predicted by a head or a fine-tuned network: class -> images."""

    head: Path
    output: Path
    images: int
    failed: int
    predicted: dict[str, int]
    seconds: float

    def lines(self) -> list[str]:
        counts = list(self.predicted.items())[:SHOWN_CLASSES]
        shown = ", ".join(f"{printable(name)} {count:,}" for name, count in counts)
        lines = [f"{self.output}: {plural(self.images, 'image')} in {format_duration(self.seconds)}: {shown}"]
        if self.failed:
            lines.append(f"{plural(self.failed, 'image')} failed: no class, and the reason in the last column")
        return lines


def predict_images(
    head: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: PredictConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> PredictReport:
    """Write the predicted class and the scores of every image to a CSV file.

    Columns: path, class, score:CLASS for every class (probabilities of a softmax head or a calibrated SVM, decision
    values of another SVM), error. One line per image, in the source's order; failed images have an empty class. A
    multi-label head gives all classes with a score above 0, joined by |. Beside it, OUTPUT.json records what made it.

    The same call again does nothing, or resumes where an interrupted one stopped.

    Args:
        head: a head, or the folder of a fine-tuned network.
        source: images as for `extract_features`; for a head also a features file.

    Raises:
        FeaturesMismatch: the features file holds other features than the head takes.
        WeightsMismatch: the network's weights are not those the head was fitted with.
        PlanMismatch: the output holds other predictions, or was changed since it was made.
        TooManyBadImages: more images failed than `config.max_bad` allows; no table is written.
        Interrupted: a signal came.
    """
    config, started = config or PredictConfig(), time.perf_counter()
    table = PredictionTable(Path(output), reporter)
    table.refuse_foreign()
    model = load_model(head)
    given = open_features(source) if is_hdf5(Path(source)) else scan(source, follow_links=config.follow_links)
    kind = given.kind if isinstance(given, Manifest) else None
    reporter.notes(notes_on(config, Facts(source_kind=kind, model=model.kind)))
    plan = plan_of(config, without=("device", "weights_file"), head=model.digest, images=given.digest)
    stored = StoredScores(table.path, model, config, reporter)
    finished = table.take_finished(plan, given if isinstance(given, Manifest) else None)
    if finished is not None:
        stored.discard()  # left there if the run was killed at its very end
        return build(
            PredictReport, finished, f"{table.record_path}, report", head=Path(head), output=table.path, seconds=0.0
        )
    if isinstance(given, Manifest):
        scored = stored.of_images(given)
    elif model.head is None:
        raise UsageError(
            f"{source} is a features file; {head} is a whole network and takes images. For a head on its features: "
            f"featx extract IMAGES -b {head}"
        )
    else:
        scored = score_features(model.head, given)
    scored.refuse_too_many_bad(config.max_bad)
    chosen = [None if row in scored.errors else name for row, name in enumerate(model.rule.names(scored.scores))]
    write_table(table.path, model.classes, scored.paths, chosen, model.rule.outputs(scored.scores), scored.errors)
    counts: dict[str, Any] = {
        "images": len(scored.paths),
        "failed": len(scored.errors),
        "predicted": dict(Counter(name for name in chosen if name is not None).most_common()),
    }
    table.commit(plan, counts, scored.images)
    stored.discard()
    return PredictReport(head=Path(head), output=table.path, seconds=time.perf_counter() - started, **counts)


def score_features(head: LinearHead, features: Features) -> Scored:
    """The scores of all rows of a features file."""
    layer = layer_for(head, features)
    scores = np.zeros((len(features), len(head.classes)))
    rows = np.flatnonzero(features.status == Status.DONE)
    if len(rows):
        scores[rows] = head.scores(features[layer][rows])
    return Scored(features.paths, scores, {f.row: f.reason for f in features.failures()}, {}, features.sha256)
