"""`featx predict`: a head tells the class of images, or of features extracted before."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifacts.artifact import plan_of
from featx.artifacts.prediction_table import PredictionTable, write_best, write_table
from featx.errors import UsageError
from featx.extraction.model import Model, Models, layer_for, load_model
from featx.extraction.scoring import Scored, StoredScores, score_images
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
_SHOWN_IMAGES, _BEST = 20, 3


@dataclass(frozen=True)
class PredictReport(Report):
    """What was predicted by a head or a fine-tuned network.

    Attributes:
        predicted: class -> images; nothing of a network that predicts numbers.
        output: the table; None if there is none.
        best: without a table, of each image its path and its best classes with their probabilities or scores.
    """

    head: Path
    output: Path | None
    images: int
    failed: int
    predicted: dict[str, int]
    seconds: float
    best: list[dict[str, Any]] | None = None

    def lines(self) -> list[str]:
        if self.best is not None:
            return self._best_lines(self.best)
        counts = list(self.predicted.items())[:SHOWN_CLASSES]
        shown = ", ".join(f"{printable(name)} {count:,}" for name, count in counts)
        took = f"{plural(self.images, 'image')} in {format_duration(self.seconds)}"
        lines = [f"{self.output}: {took}{f': {shown}' if shown else ''}"]
        if self.failed:
            lines.append(f"{plural(self.failed, 'image')} failed: no class, and the reason in the last column")
        return lines

    def _best_lines(self, best: list[dict[str, Any]]) -> list[str]:
        lines = []
        for one in best[:_SHOWN_IMAGES]:
            classes = ", ".join(f"{name} {value:.4g}" for name, value in one["classes"].items())
            lines.append(f"{one['path']}: {one['error'] or classes}")
        if len(best) > _SHOWN_IMAGES:
            lines.append(f"and {len(best) - _SHOWN_IMAGES:,} more; -o TABLE.csv has them all, and --json")
        return lines


@dataclass(frozen=True)
class PredictionsReport(Report):
    """What several heads have predicted."""

    heads: list[PredictReport]

    def lines(self) -> list[str]:
        return [line for one in self.heads for line in one.lines()]


def predict_images(
    head: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    config: PredictConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> PredictReport:
    """Write the predicted class and the scores of every image to a CSV file.

    Columns: path, class, score:CLASS for every class (probabilities of a softmax head or a calibrated SVM, decision
    values of another SVM), error. One line per image, in the source's order; failed images have an empty class. A
    multi-label head gives all classes with a score above 0, joined by |; a run that predicts numbers has them in
    columns of their names (value, or value1, value2, ...) and no class. Beside it, OUTPUT.json records what made it.
    With `config.top` the columns are path, class, probability (or score), class2, probability2, ... of the K best.
    Without an output the report itself has the best classes of every image.

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
    if output is None:
        return _predict_without_table(Path(head), source, config or PredictConfig(), reporter)
    return _predict([head], source, [Path(output)], config or PredictConfig(), reporter)[0]


def predict_with_heads(
    heads: Sequence[str | os.PathLike[str]],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    config: PredictConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> PredictionsReport:
    """As `predict_images`, with several heads on features of one network, which sees each image once.

    Args:
        output: a folder; the table of head NAME.safetensors is NAME.csv in it, and its rows are those of
            `predict_images`.

    Raises:
        UsageError: no output, two heads of one name, or heads whose features are made in different ways.
    """
    names = [Path(head).stem for head in heads]
    if output is None:
        raise UsageError("several heads need a folder for their tables: -o FOLDER")
    if len(set(names)) < len(names):
        raise UsageError(f"two heads are called {max(names, key=names.count)}, and so would be their tables")
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; of several heads -o is a folder")
    tables = [folder / f"{name}.csv" for name in names]
    return PredictionsReport(_predict(heads, source, tables, config or PredictConfig(), reporter))


def _predict(
    heads: Sequence[str | os.PathLike[str]],
    source: str | os.PathLike[str],
    outputs: Sequence[Path],
    config: PredictConfig,
    reporter: Reporter,
) -> list[PredictReport]:
    """A table for each head; what is there already is left alone."""
    started = time.perf_counter()
    tables = [PredictionTable(output, reporter) for output in outputs]
    for table in tables:
        table.refuse_foreign()
    models = [load_model(head) for head in heads]
    given = open_features(source) if is_hdf5(Path(source)) else scan(source, follow_links=config.follow_links)
    kind = given.kind if isinstance(given, Manifest) else None
    reporter.notes(notes_on(config, Facts(source_kind=kind, model=models[0].kind)))
    reports: dict[int, PredictReport] = {}
    plans = [
        plan_of(config, without=("device", "weights_file"), head=model.digest, images=given.digest)
        for model in models
    ]
    for place, (table, plan) in enumerate(zip(tables, plans, strict=True)):
        finished = table.take_finished(plan, given if isinstance(given, Manifest) else None)
        if finished is not None:
            reports[place] = build(
                PredictReport, finished, f"{table.record_path}, report", head=Path(heads[place]), output=table.path,
                seconds=0.0,
            )  # fmt: skip
    left = [place for place in range(len(tables)) if place not in reports]
    for place in left:
        _refuse_top(models[place], config)
    # Of all heads, also of those that have their table: the pass that was interrupted was for all of them.
    stored = StoredScores(tables[0].path, Models(tuple(models)), config, reporter)
    scored = stored.all_of_images(given) if left and isinstance(given, Manifest) else []
    for place in left:
        one = scored[place] if isinstance(given, Manifest) else score_features(_head_for(models[place], given), given)
        one.refuse_too_many_bad(config.max_bad)
        reports[place] = _write(tables[place], models[place], one, plans[place], config, started)
    stored.discard()  # left there if an earlier run was killed at its very end
    return [reports[place] for place in range(len(tables))]


def _write(
    table: PredictionTable, model: Model, scored: Scored, plan: dict[str, Any], config: PredictConfig, started: float
) -> PredictReport:
    chosen = _chosen(model, scored)
    outputs = model.rule.outputs(scored.scores)
    if config.top is None:
        numbers = model.rule.kind == "value"
        write_table(table.path, model.classes, scored.paths, chosen, outputs, scored.errors, numbers=numbers)
    else:
        what = "score" if model.rule.probabilities(scored.scores[:1]) is None else "probability"
        write_best(table.path, model.classes, scored.paths, outputs, scored.errors, top=config.top, what=what)
    counts: dict[str, Any] = {
        "images": len(scored.paths),
        "failed": len(scored.errors),
        "predicted": _tally(model, chosen),
    }
    table.commit(plan, counts, scored.images)
    return PredictReport(head=model.path, output=table.path, seconds=time.perf_counter() - started, **counts)


def _predict_without_table(
    head: Path, source: str | os.PathLike[str], config: PredictConfig, reporter: Reporter
) -> PredictReport:
    """The best classes of each image, in the report."""
    started = time.perf_counter()
    model = load_model(head)
    _refuse_top(model, config)
    given = open_features(source) if is_hdf5(Path(source)) else scan(source, follow_links=config.follow_links)
    if isinstance(given, Manifest):
        reporter.notes(notes_on(config, Facts(source_kind=given.kind, model=model.kind)))
        scored = score_images(model, given, config, reporter)
    else:
        reporter.notes(notes_on(config, Facts(source_kind=None, model=model.kind)))
        scored = score_features(_head_for(model, given), given)
    if len(scored.errors) < len(scored.paths):  # one image that cannot be read is said of itself
        scored.refuse_too_many_bad(config.max_bad)
    outputs, chosen = model.rule.outputs(scored.scores), _chosen(model, scored)
    best = []
    for row, path in enumerate(scored.paths):
        places = np.argsort(-outputs[row], kind="stable")[: config.top or _BEST]
        found = {model.classes[place]: float(outputs[row, place]) for place in places}
        failed = row in scored.errors
        best.append({"path": path, "class": chosen[row], "classes": {} if failed else found,
                     "error": scored.errors.get(row, "")})  # fmt: skip
    counts = _tally(model, chosen)
    return PredictReport(
        head, None, len(scored.paths), len(scored.errors), counts, time.perf_counter() - started, best
    )


def _tally(model: Model, chosen: list[str | None]) -> dict[str, int]:
    """class -> images, the most frequent first; nothing of numbers."""
    if model.rule.kind == "value":
        return {}
    return dict(Counter(name for name in chosen if name is not None).most_common())


def _chosen(model: Model, scored: Scored) -> list[str | None]:
    return [None if row in scored.errors else name for row, name in enumerate(model.rule.names(scored.scores))]


def _refuse_top(model: Model, config: PredictConfig) -> None:
    if config.top is not None and model.rule.kind == "value":
        raise UsageError(f"--top is for classes; {model.path} predicts numbers")
    if config.top is not None and model.rule.multilabel:
        raise UsageError(f"--top is for one class per image; {model.path} gives several")
    if config.top is not None and config.top > len(model.classes):
        raise UsageError(f"--top {config.top}: {model.path} knows {len(model.classes)} classes")


def _head_for(model: Model, features: Features) -> LinearHead:
    if model.head is None:
        raise UsageError(
            f"{features.path} is a features file; {model.path} is a whole network and takes images. For a head on "
            f"its features: featx extract IMAGES -b {model.path}"
        )
    return model.head


def score_features(head: LinearHead, features: Features) -> Scored:
    """The scores of all rows of a features file."""
    layer = layer_for(head, features)
    scores = np.zeros((len(features), len(head.classes)))
    rows = np.flatnonzero(features.status == Status.DONE)
    if len(rows):
        scores[rows] = head.scores(features[layer][rows])
    return Scored(features.paths, scores, {f.row: f.reason for f in features.failures()}, {}, features.sha256)
