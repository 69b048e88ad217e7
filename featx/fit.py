"""`featx fit-svm` and `featx fit-softmax`: labelled features become a head, and a report on it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.config import FitConfig
from featx.errors import FileFormatError, LabelError
from featx.heads.linear import LinearHead, recipe_of
from featx.heads.metrics import Metrics, measure
from featx.heads.normalize import Normalizer
from featx.heads.search import GridPoint, choose_c
from featx.heads.solver import fit_linear
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
        converged: the solver reached its tolerance.
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
    converged: bool
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
        text.append(f"C = {self.c:g}" + ("" if self.converged else "; the solver did NOT reach its tolerance"))
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
    if output is not None and Path(output).exists():
        LinearHead.load(output)  # overwrite a head, never anything else
    features = open_features(path)
    layer = features.only_layer(config.layer)
    rows = features.usable()
    train, test = _split(features, rows, config)
    labels, classes = _compact_labels(features, train)
    values = features[layer].reshape(len(features), -1)
    training = np.asarray(values[train], np.float32)
    _refuse_non_finite(training, train, features, layer)
    c, curve = config.c, list[GridPoint]()
    if c is None:
        c, curve = choose_c(
            kind,
            training,
            labels[train],
            normalize=config.normalize,
            folds=config.folds,
            seed=config.seed,
            classes=classes,
            reporter=reporter,
        )
    normalizer = Normalizer.fit(config.normalize, training)
    solution = fit_linear(kind, normalizer(training), labels[train], c, config.seed)
    weights, bias = normalizer.fold(solution.weights, solution.bias)
    head = LinearHead(
        kind=kind,
        weights=weights,
        bias=bias,
        classes=classes,
        normalize="l2" if config.normalize == "l2" else "none",
        layer=layer,
        recipe=recipe_of(features.provenance, layer, features.layers[layer].pooling),
    )
    known = test[labels[test] >= 0]
    metrics = measure(head.scores(values[known]), labels[known], classes) if len(known) else None
    report = FitReport(
        output=Path(output) if output is not None else None,
        kind=kind,
        layer=layer,
        values=values.shape[1],
        normalize=config.normalize,
        c=c,
        curve=curve,
        train=len(train),
        test=len(known),
        left_out=len(features) - len(train) - len(known),
        metrics=metrics,
        converged=solution.converged,
        notes=_notes(features, config, classes, metrics),
        seconds=time.perf_counter() - started,
    )
    if output is not None:
        kept = {key: value for key, value in report.to_json().items() if key not in ("output", "seconds")}
        object.__setattr__(head, "report", {**kept, "seed": config.seed})
        head.save(output)
    return report


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


def _refuse_non_finite(values: npt.NDArray[np.float32], rows: Rows, features: Features, layer: str) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        row = int(rows[int(bad.argmax())])
        raise FileFormatError(
            f"{features.path}: {layer} of {printable(features.paths[row])} (row {row}) holds NaN or infinite values "
            f"although the image counts as done; run featx verify {features.path}"
        )
