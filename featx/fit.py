"""`featx fit-svm` and `featx fit-softmax`: labelled features become a head, and a report on it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featx import __version__
from featx.config import HEADS, FitConfig
from featx.errors import FileFormatError, LabelError, NonFiniteRow, PlanMismatch, UsageError
from featx.heads.calibrate import Calibration, calibrate
from featx.heads.labels import Labels, classes_of, is_multilabel, labels_among
from featx.heads.linear import LinearHead, recipe_of
from featx.heads.metrics import GridPoint, LabelMetrics, Metrics, metric_lines
from featx.heads.split import Rows, split_by_name, split_by_share, split_per_class
from featx.options import Config
from featx.progress import ALREADY_THERE, SILENT, Reporter, format_duration
from featx.report import Report, printable, table
from featx.store.reader import Features, open_features
from featx.store.schema import differences

if TYPE_CHECKING:
    from featx.heads.search import Found
    from featx.heads.solver.path import Uncertified

DEFAULT_TEST = 0.2
SHOWN_CONFUSIONS = 5


@dataclass(frozen=True)
class FitReport(Report):
    """How a head was fitted and how good it is.

    Attributes:
        left_out: images without a label, failed, or of a split that was not asked for.
        curve: cross-validated accuracy for every C that was tried; empty if C was given.
        metrics: on the test rows; None if there are none.
        gap: proven bound on how far the objective is above its optimum, relative to it; the worst class.
        uncertified: what could not be proven to the solver's tolerance: class, C and fold, with its gap.
    """

    output: Path | None
    kind: str
    layer: str
    values: int
    normalize: str
    c: float
    curve: list[GridPoint]
    train: int
    test: int
    left_out: int
    metrics: Metrics | LabelMetrics | None
    gap: float
    uncertified: list[str]
    notes: list[str]
    seconds: float

    def lines(self) -> list[str]:
        text = [
            f"{HEADS[self.kind]} on {self.layer} ({self.values:,} values, {self.normalize}): "
            f"{self.train:,} images to train, {self.test:,} to test"
            + (f", {self.left_out:,} left out" if self.left_out else "")
            + f"; {format_duration(self.seconds)}"
        ]
        if self.curve:
            text += self._curve_lines()
        text.append(f"C = {self.c:g}; objective proven to be within {self.gap:.0e} of its optimum")
        if self.uncertified:
            shown = "; ".join(self.uncertified[:SHOWN_CONFUSIONS])
            text.append(f"NOT proven to be at their optimum: {len(self.uncertified)} fits, among them {shown}")
        if self.metrics:
            text += metric_lines(self.metrics)
        text += [f"note: {note}" for note in self.notes]
        text.append(f"saved as {self.output}" if self.output else "not saved: -o HEAD.safetensors keeps it")
        return text

    def _curve_lines(self) -> list[str]:
        measured = "mean average precision" if isinstance(self.metrics, LabelMetrics) else "accuracy"
        rows = [
            [f"{p.c:g}", f"{p.accuracy:.1%}", f"± {p.deviation:.1%}", "chosen" if p.c == self.c else ""]
            for p in self.curve
        ]
        lines = table(["C", measured, "(folds)", ""], rows)
        if self.c in (self.curve[0].c, self.curve[-1].c) and self.metrics:
            lines.append("the best C is at the edge of what was tried; values beyond it may do better: --c")
        return lines


def fit_svm(
    features: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    config: FitConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> FitReport:
    """Fit a linear SVM on a layer of a features file and save it as a head.

    The objective is that of scikit-learn's LinearSVC(loss="squared_hinge"), one class against the rest. The same call
    again does nothing if the head is there.

    Args:
        output: the head, NAME.safetensors; None to fit and report only.

    Raises:
        PlanMismatch: the output is there and holds another head.
        LabelError: no labels, one class only, too few images of a class.
        FileFormatError, UnknownLayer: not a features file; it does not hold the layer.
    """
    return _fit("svm", Path(features), output, config or FitConfig(), reporter)


def fit_softmax(
    features: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    config: FitConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> FitReport:
    """Fit a softmax (multinomial logistic regression) head; otherwise as `fit_svm`.

    The objective is that of scikit-learn's LogisticRegression(penalty="l2").
    """
    return _fit("softmax", Path(features), output, config or FitConfig(), reporter)


def _fit(
    kind: str, path: Path, output: str | os.PathLike[str] | None, config: FitConfig, reporter: Reporter
) -> FitReport:
    started = time.perf_counter()
    if kind == "softmax" and config.calibrate != "none":
        raise UsageError("a softmax gives probabilities as it is; --calibrate is for featx fit-svm")
    features = open_features(path)
    layer = features.only_layer(config.layer)
    plan = plan_of(config, kind=kind, features=features.digest, layer=layer)
    if output is not None and Path(output).exists():
        finished = _take_finished(Path(output), plan)
        reporter.note(ALREADY_THERE)
        return finished
    from featx.device import choose_device, free_memory
    from featx.heads.search import fit_heads

    rows = features.usable()
    train, test = _split(features, rows, config)
    multilabel = is_multilabel([features.classes[label] for label in np.unique(features.labels[rows])])
    if multilabel:
        _refuse_what_needs_one_class(kind, config, path)
    classes, labels = _labels_to_train_on(features, train, multilabel)
    values = features[layer].reshape(len(features), -1)
    device = choose_device(config.device)
    try:
        found = fit_heads(
            kind,
            values,
            train,
            labels[train],
            classes,
            c=config.c,
            folds=config.folds,
            seed=config.seed,
            normalize=config.normalize,
            device=device,
            memory_bytes=config.memory or free_memory(device) // 2,
            keep_scores=config.calibrate != "none",
            reporter=reporter,
        )
    except NonFiniteRow as error:
        raise damaged_row(features, layer, error) from error
    head = LinearHead(
        kind=kind,
        weights=found.weights,
        bias=found.bias,
        classes=classes,
        normalize="l2" if config.normalize == "l2" else "none",
        layer=layer,
        recipe=recipe_of(features.provenance, layer, features.layers[layer].pooling),
        calibration=_calibrated(found, labels[train], config),
        multilabel=multilabel,
    )
    known = test if multilabel else test[labels[test] >= 0]
    metrics = head.measure(values[known], labels[known]) if len(known) else None
    report = FitReport(
        output=Path(output) if output is not None else None,
        kind=kind,
        layer=layer,
        values=values.shape[1],
        normalize=config.normalize,
        c=found.c,
        curve=found.curve,
        train=len(train),
        test=len(known),
        left_out=len(features) - len(train) - len(known),
        metrics=metrics,
        gap=found.solution.gap,
        uncertified=[_describe(one, classes, kind) for one in found.uncertified],
        notes=_notes(features, config, classes, metrics),
        seconds=time.perf_counter() - started,
    )
    if output is not None:
        kept = {key: value for key, value in report.to_json().items() if key not in ("output", "seconds")}
        object.__setattr__(head, "report", {**kept, "plan": plan})
        head.save(output)
    return report


def plan_of(config: Config, **more: Any) -> dict[str, Any]:
    """What a result depends on, to tell whether one that is there is the one asked for; not the device."""
    request = {name: value for name, value in config.recorded().items() if name not in ("device", "layer", "layers")}
    return {**more, "request": request, "featx": __version__}


def _take_finished(output: Path, plan: dict[str, Any]) -> FitReport:
    """The report of a head that is there already, without loading torch.

    Raises:
        PlanMismatch: it is another one.
    """
    head = LinearHead.load(output)
    stored = dict(head.report)
    changed = differences(stored.pop("plan", {}), plan)
    if changed:
        raise PlanMismatch(
            f"{output} holds another head: {'; '.join(changed[:3])}. Choose another name with -o, or delete it"
        )
    metrics = stored.pop("metrics")
    if metrics is not None:
        metrics = LabelMetrics(**metrics) if head.multilabel else Metrics(**metrics)
    curve = [GridPoint(**point) for point in stored.pop("curve")]
    return FitReport(output=output, metrics=metrics, curve=curve, seconds=0.0, **stored)


def _calibrated(found: Found, labels: Labels, config: FitConfig) -> Calibration | None:
    if found.held_out_scores is None:
        return None
    return calibrate(config.calibrate, found.held_out_scores, labels.astype(np.int32))


def _describe(one: Uncertified, classes: list[str], kind: str) -> str:
    name = f"class {printable(classes[one.problem])} " if kind == "svm" and len(classes) > 2 else ""
    where = "" if one.fold is None else f" in fold {one.fold + 1}"
    return f"{name}at C = {one.c:g}{where} ({one.gap:.0e})"


def _split(features: Features, rows: Rows, config: FitConfig) -> tuple[Rows, Rows]:
    """Rows of the file to train and to test on."""
    if not len(rows):
        raise LabelError(
            f"{features.path} has no labelled images: put them into one folder per class, or list them in a CSV with "
            f"the columns path,label, and extract again"
        )
    labels = features.labels[rows]
    if config.split_column:
        train, test = split_by_name(features.split_of[rows], features.splits)
    elif config.per_class is not None:
        train, test = split_per_class(labels, config.per_class, config.seed, features.classes)
    else:
        share = DEFAULT_TEST if config.test is None else config.test
        # Where images have several classes, what they have in common is no class to hold a share of.
        multilabel = is_multilabel([features.classes[label] for label in np.unique(labels)])
        train, test = split_by_share(np.zeros_like(labels) if multilabel else labels, share, config.seed)
    return rows[train], rows[test]


def _notes(
    features: Features, config: FitConfig, classes: list[str], metrics: Metrics | LabelMetrics | None
) -> list[str]:
    """What a reader of the accuracy should know."""
    notes = []
    if features.splits and not config.split_column:
        notes.append(
            f"the file has splits ({', '.join(map(printable, features.splits))}) that were not used: images of "
            f"all of them were mixed. --split-column trains on one and tests on the other"
        )
    untested = [name for name in classes if metrics and metrics.per_class[name] is None]
    if untested:
        shown = ", ".join(printable(name) for name in untested[:SHOWN_CONFUSIONS])
        notes.append(f"{len(untested)} classes have too few images to be tested: {shown}")
    return notes


def _refuse_what_needs_one_class(kind: str, config: FitConfig, path: Path) -> None:
    found = f"images of {path} have several classes (a|b)"
    if kind == "softmax":
        raise LabelError(f"{found}; a softmax gives each image one. Every class against the rest: featx fit-svm")
    if config.calibrate != "none":
        raise UsageError(f"{found}; --calibrate makes probabilities of one class per image")
    if config.per_class is not None:
        raise UsageError(f"{found}; --per-class is for one class per image; --test 20% for several")


def _labels_to_train_on(features: Features, train: Rows, multilabel: bool) -> tuple[list[str], Labels]:
    """The classes that have training rows, and the labels of all rows among them.

    Raises:
        LabelError: there is only one of them.
    """
    classes = classes_of([features.classes[label] for label in np.unique(features.labels[train])])
    if len(classes) < 2:
        named = ", ".join(map(repr, classes)) or "none"
        raise LabelError(f"{features.path}: a head needs at least two classes to tell apart; to train on: {named}")
    return classes, labels_among(classes, features.classes, features.labels, multilabel)


def damaged_row(features: Features, layer: str, error: NonFiniteRow) -> FileFormatError:
    """What to say of a row that holds NaN although the file calls it done."""
    return FileFormatError(
        f"{features.path}: {layer} of {printable(features.paths[error.row])} (row {error.row}) holds NaN or infinite "
        f"values although the image counts as done; run featx verify {features.path}"
    )
