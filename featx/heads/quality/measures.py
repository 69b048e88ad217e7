"""More of the quality of scores than their accuracy: per class, over thresholds, of probabilities; intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.heads.decision import DecisionRule
from featx.heads.labels import Labels
from featx.heads.quality.metrics import (
    AnyMetrics,
    LabelMetrics,
    ValueMetrics,
    decisions,
    measure,
    measure_labels,
    measure_values,
)

BINS = 15
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in one of 15 equal parts from 0 to 1.

    Attributes:
        confidence, accuracy: means over them.
    """

    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Interval:
    """The 2.5 and 97.5 percentiles over bootstraps of the images."""

    low: float
    high: float


@dataclass(frozen=True)
class Measures:
    """Quality of scores on labelled images of one class each.

    Attributes:
        precision, recall, f1: class -> value; None for a class without images, precision also where it is never
            predicted.
        macro_f1, macro_precision: means over the classes with images, a value that is None counting as 0.
        roc_auc, average_precision: means over the classes, each against the rest, that have images beside others.
        calibration_error: ECE (Guo et al., ICML 2017): mean |accuracy - confidence| over 15 equal bins of the
            confidence, weighted by their images; None without probabilities.
        reliability: the bins with images behind it.
        accuracy, mean_per_class: 95 % intervals; None without bootstraps.
    """

    precision: dict[str, float | None]
    recall: dict[str, float | None]
    f1: dict[str, float | None]
    macro_precision: float
    macro_f1: float
    roc_auc: float | None
    average_precision: float | None
    calibration_error: float | None
    reliability: list[Bin]
    accuracy: Interval | None
    mean_per_class: Interval | None

    def lines(self) -> list[str]:
        """For people."""
        parts = [f"macro precision {self.macro_precision:.1%}, F1 {self.macro_f1:.1%}"]
        if self.roc_auc is not None:
            parts.append(f"ROC AUC {self.roc_auc:.4f}, average precision {self.average_precision:.1%}")
        if self.calibration_error is not None:
            parts.append(f"calibration error {self.calibration_error:.1%}")
        text = ["; ".join(parts)]
        if self.accuracy is not None and self.mean_per_class is not None:
            one, mean = self.accuracy, self.mean_per_class
            text.append(
                f"95 % intervals: accuracy {one.low:.1%} to {one.high:.1%}, mean per class {mean.low:.1%} to "
                f"{mean.high:.1%}"
            )
        return text


def measured(rule: DecisionRule, scores: Floats, labels: npt.NDArray[Any]) -> AnyMetrics:
    """What scores (n, K) are worth, by what they mean."""
    names = list(rule.classes)
    if rule.kind == "value":
        return measure_values(scores, labels.astype(np.float64), names)
    if rule.multilabel:
        return measure_labels(scores, labels.astype(bool), names)
    return measure(scores, labels.astype(np.int64), names)


def quality(metrics: AnyMetrics) -> tuple[str, float]:
    """The one number that metrics come down to, and what it is."""
    if isinstance(metrics, ValueMetrics):
        return "R\u00b2", metrics.mean_r2
    if isinstance(metrics, LabelMetrics):
        return "mean average precision", metrics.mean_average_precision
    return "accuracy", metrics.accuracy


def detailed(rule: DecisionRule, scores: Floats, labels: Labels, bootstrap: int) -> Measures | None:
    """Everything of a model's scores; None where images are of several classes, or scores are numbers."""
    if rule.multilabel or rule.kind == "value":
        return None
    truth = labels.astype(np.int64)
    return measures_of(
        rule.outputs(scores), decisions(scores, truth), truth, list(rule.classes), rule.probabilities(scores),
        bootstrap=bootstrap,
    )  # fmt: skip


def measures_of(
    outputs: Floats,
    predicted: npt.NDArray[np.integer],
    labels: npt.NDArray[np.integer],
    classes: list[str],
    probabilities: Floats | None,
    *,
    bootstrap: int,
    seed: int = 0,
) -> Measures:
    """Everything of outputs (n, K) of n > 0 images with labels (n,).

    Args:
        outputs: what ranks the images for each class: probabilities where there are some, else scores.
        predicted: (n,) the decisions.
        probabilities: (n, K); None if there are none.
        bootstrap: how often the images are drawn again for the intervals; 0 for none.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    count = len(classes)
    confusion = np.zeros((count, count))
    np.add.at(confusion, (labels, predicted), 1)
    right, there, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision, f1 = right / there, right / said, 2 * right / (there + said)
    precision = np.where(there > 0, precision, np.nan)
    f1 = np.where(there > 0, f1, np.nan)
    used = np.flatnonzero((there > 0) & (there < len(labels)))
    members = [(labels == k, outputs[:, k]) for k in used]
    low_high: tuple[Interval | None, Interval | None] = None, None
    if bootstrap:
        low_high = _intervals(predicted == labels, labels, count, bootstrap, seed)
    error, bins = (None, []) if probabilities is None else calibration(probabilities, predicted, labels)
    return Measures(
        precision=_named(classes, precision),
        recall=_named(classes, recall),
        f1=_named(classes, f1),
        macro_precision=float(np.nan_to_num(precision[there > 0]).mean()),
        macro_f1=float(f1[there > 0].mean()),
        roc_auc=float(np.mean([roc_auc_score(*one) for one in members])) if members else None,
        average_precision=float(np.mean([average_precision_score(*one) for one in members])) if members else None,
        calibration_error=error,
        reliability=bins,
        accuracy=low_high[0],
        mean_per_class=low_high[1],
    )


def calibration(
    probabilities: Floats, predicted: npt.NDArray[np.integer], labels: npt.NDArray[np.integer]
) -> tuple[float, list[Bin]]:
    """The calibration error, and the bins that have images: (lower, upper] of 15 equal parts of the confidence."""
    confidence = probabilities[np.arange(len(labels)), predicted]
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    correct = predicted == labels
    bins, error = [], 0.0
    for number in range(BINS):
        inside = place == number
        if inside.any():
            one = Bin(int(inside.sum()), float(confidence[inside].mean()), float(correct[inside].mean()))
            bins.append(one)
            error += one.images / len(labels) * abs(one.accuracy - one.confidence)
    return error, bins


def _intervals(
    correct: npt.NDArray[np.bool_], labels: npt.NDArray[np.integer], classes: int, repeats: int, seed: int
) -> tuple[Interval, Interval]:
    """Of the accuracy, and of the mean over classes, whose images are drawn within each class."""
    generator = np.random.default_rng(seed)
    # As many right ones as a draw of n images with replacement gives.
    whole = generator.binomial(len(labels), correct.mean(), repeats) / len(labels)
    sizes = np.bincount(labels, minlength=classes)
    shares = np.bincount(labels, weights=correct, minlength=classes)[sizes > 0] / sizes[sizes > 0]
    each = generator.binomial(sizes[sizes > 0], shares, (repeats, len(shares))) / sizes[sizes > 0]
    return _interval(whole), _interval(each.mean(1))


def _interval(values: Floats) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _named(classes: list[str], values: Floats) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in zip(classes, values, strict=True)}


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same images.

    Attributes:
        only_first, only_second: images that only one of them gets right.
        p: exact two-sided probability of counts so far apart if both were right as often.
        difference: accuracy of the second less that of the first.
        interval: of the difference, over bootstraps of the images.
    """

    images: int
    both: int
    neither: int
    only_first: int
    only_second: int
    p: float
    difference: float
    interval: Interval


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], *, bootstrap: int, seed: int = 0) -> McNemar:
    """Compare which images (n,) two classifiers get right.

    Source:
        McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 1947; the
        exact form is the binomial test of the images that they differ on.
    """
    from scipy.stats import binomtest

    only = int((first & ~second).sum()), int((second & ~first).sum())
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    p = float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0
    count = len(first)
    drawn = np.random.default_rng(seed).multinomial(
        count, [only[0] / count, only[1] / count, (both + neither) / count], max(1, bootstrap)
    )
    interval = _interval((drawn[:, 1] - drawn[:, 0]) / count)
    return McNemar(count, both, neither, *only, p, (only[1] - only[0]) / count, interval)
