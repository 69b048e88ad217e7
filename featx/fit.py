"""`featx fit-svm` and `featx fit-softmax`: labelled features become a head, and a report on it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.config import FitConfig
from featx.device import choose_device, free_memory
from featx.errors import FileFormatError, LabelError, NonFiniteRow, UsageError
from featx.heads.calibrate import Calibration, calibrate
from featx.heads.linear import LinearHead, recipe_of
from featx.heads.metrics import Metrics, measure
from featx.heads.normalize import Normalizer
from featx.heads.search import Found, GridPoint, choose_c, normalised_blocks, stratified_folds
from featx.heads.solver.path import TOLERANCE, Solver, Uncertified
from featx.heads.solver.targets import Targets
from featx.heads.split import Rows, split_by_name, split_by_share, split_per_class
from featx.images.scan import printable
from featx.progress import SILENT, Reporter, format_duration
from featx.report import Report, table
from featx.store.reader import Features, open_features

DEFAULT_TEST = 0.2
SHOWN_CLASSES = 12
SHOWN_CONFUSIONS = 5
NAMES = {"svm": "linear SVM", "softmax": "softmax"}


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
    metrics: Metrics | None
    gap: float
    uncertified: list[str]
    notes: list[str]
    seconds: float

    def lines(self) -> list[str]:
        text = [
            f"{NAMES[self.kind]} on {self.layer} ({self.values:,} values, {self.normalize}): "
            f"{self.train:,} images to train, {self.test:,} to test"
            + (f", {self.left_out:,} left out" if self.left_out else "")
            + f"; {format_duration(self.seconds)}"
        ]
        if self.curve:
            text += self._curve_lines()
        text.append(f"C = {self.c:g}; objective proven to be within {self.gap:.0e} of its optimum")
        if self.uncertified:
            shown = "; ".join(self.uncertified[:SHOWN_CONFUSIONS])
            text.append(f"NOT proven to {TOLERANCE:g}: {len(self.uncertified)} fits, among them {shown}")
        if self.metrics:
            text += metric_lines(self.metrics)
        text += [f"note: {note}" for note in self.notes]
        text.append(f"saved as {self.output}" if self.output else "not saved: -o HEAD.safetensors keeps it")
        return text

    def _curve_lines(self) -> list[str]:
        rows = [
            [f"{p.c:g}", f"{p.accuracy:.1%}", f"± {p.deviation:.1%}", "chosen" if p.c == self.c else ""]
            for p in self.curve
        ]
        lines = table(["C", "accuracy", "(folds)", ""], rows)
        if self.c in (self.curve[0].c, self.curve[-1].c) and self.metrics:
            lines.append("the best C is at the edge of what was tried; values beyond it may do better: --c")
        return lines


def metric_lines(metrics: Metrics) -> list[str]:
    """Accuracies, and the confusion matrix or what is confused most."""
    text = f"accuracy {metrics.accuracy:.1%}, mean per class {metrics.mean_per_class:.1%}"
    text += "" if metrics.top5 is None else f", top-5 {metrics.top5:.1%}"
    names = [printable(name) for name in metrics.per_class]
    if len(names) <= SHOWN_CLASSES:
        rows = [[name, *counts] for name, counts in zip(names, metrics.confusion, strict=True)]
        return [text, *table(["true \\ predicted", *names], rows)]
    confusion = np.array(metrics.confusion)
    np.fill_diagonal(confusion, 0)
    most = np.argsort(confusion, axis=None)[::-1][:SHOWN_CONFUSIONS]
    pairs = [(int(flat) // len(names), int(flat) % len(names)) for flat in most]
    shown = [f"{names[t]} as {names[p]} {confusion[t, p]}" for t, p in pairs if confusion[t, p]]
    return [text, "most confused: " + ("; ".join(shown) or "nothing")]


def fit_svm(
    features: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    config: FitConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> FitReport:
    """Fit a linear SVM on a layer of a features file and save it as a head.

    The objective is that of scikit-learn's LinearSVC(loss="squared_hinge"), one class against the rest.

    Args:
        output: the head, NAME.safetensors; None to fit and report only.

    Raises:
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
    if output is not None and Path(output).exists():
        LinearHead.load(output)  # overwrite a head, never anything else
    features = open_features(path)
    layer = features.only_layer(config.layer)
    rows = features.usable()
    train, test = _split(features, rows, config)
    labels, classes = _compact_labels(features, train)
    values = features[layer].reshape(len(features), -1)
    targets = Targets(kind, labels[train], len(classes))
    try:
        found = _solve(targets, values, train, classes, config, reporter)
    except NonFiniteRow as error:
        row = int(train[error.row])
        raise FileFormatError(
            f"{path}: {layer} of {printable(features.paths[row])} (row {row}) holds NaN or infinite values although "
            f"the image counts as done; run featx verify {path}"
        ) from error
    normalizer = Normalizer.fit(config.normalize, values, train)
    weights, bias = normalizer.fold(found.solution.weights, found.solution.bias)
    head = LinearHead(
        kind=kind,
        weights=weights,
        bias=bias,
        classes=classes,
        normalize="l2" if config.normalize == "l2" else "none",
        layer=layer,
        recipe=recipe_of(features.provenance, layer, features.layers[layer].pooling),
        calibration=_calibrated(found, targets, config),
    )
    known = test[labels[test] >= 0]
    metrics = measure(head.scores(values[known]), labels[known], classes) if len(known) else None
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
        gap=float((found.solution.gaps / np.maximum(found.solution.values, 1e-300)).max()),
        uncertified=[_describe(one, classes, kind) for one in found.uncertified],
        notes=_notes(features, config, classes, metrics),
        seconds=time.perf_counter() - started,
    )
    if output is not None:
        kept = {key: value for key, value in report.to_json().items() if key not in ("output", "seconds")}
        object.__setattr__(head, "report", {**kept, "seed": config.seed})
        head.save(output)
    return report


def _solve(
    targets: Targets,
    values: npt.NDArray[np.floating],
    train: Rows,
    classes: list[str],
    config: FitConfig,
    reporter: Reporter,
) -> Found:
    device = choose_device(config.device)
    memory = config.memory or free_memory(device) // 2
    blocks_of = normalised_blocks(values, train, config.normalize, device, memory // 2)
    if config.c is None or config.calibrate != "none":
        held_out = stratified_folds(targets.labels.astype(np.int32), config.folds, config.seed, classes)
        found = choose_c(
            targets,
            blocks_of,
            held_out,
            shared=config.normalize != "standard",
            memory_bytes=memory // 2,
            grid=None if config.c is None else [config.c],
            keep_scores=config.calibrate != "none",
            reporter=reporter,
        )
        return found if config.c is None else replace(found, curve=[])
    solver = Solver(blocks_of(None), targets, memory_bytes=memory // 2)
    solver.at(config.c)
    solution = solver.solution(solver.points(), config.c)
    worst = np.flatnonzero(~solution.certified)
    gaps = solution.gaps / np.maximum(solution.values, 1e-300)
    return Found(config.c, [], solution, [Uncertified(config.c, int(k), None, float(gaps[k])) for k in worst])


def _calibrated(found: Found, targets: Targets, config: FitConfig) -> Calibration | None:
    if found.held_out_scores is None:
        return None
    return calibrate(config.calibrate, found.held_out_scores, targets.labels.astype(np.int32))


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
        train, test = split_by_share(labels, share, config.seed)
    present = np.unique(labels[train])
    if len(present) < 2:
        named = ", ".join(repr(features.classes[label]) for label in present) or "none"
        raise LabelError(f"{features.path}: a head needs at least two classes to tell apart; to train on: {named}")
    return rows[train], rows[test]


def _notes(features: Features, config: FitConfig, classes: list[str], metrics: Metrics | None) -> list[str]:
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


def _compact_labels(features: Features, train: Rows) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Labels 0..K-1 over the classes that have training rows; -1 for all others."""
    present = np.unique(features.labels[train])
    compact = np.full(len(features.classes) + 1, -1, np.int32)  # the last is for label -1
    compact[present] = np.arange(len(present), dtype=np.int32)
    return compact[features.labels], [features.classes[label] for label in present]
