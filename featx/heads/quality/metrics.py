"""How good scores are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.runtime.stored import build
from featx.runtime.text import printable, table

TOP = 5
SHOWN_CLASSES = 12
SHOWN_CONFUSIONS = 5


@dataclass(frozen=True)
class Metrics:
    """Quality of predictions on labelled images.

    Attributes:
        accuracy: share of images whose class has the highest score.
        mean_per_class: mean over classes of the share of their images that is right; classes without images in
            the test set do not count.
        top5: share of images whose class is among the five highest scores; None with five classes or fewer.
        per_class: class -> share of its images that is right; None where there are none.
        confusion: (K, K) counts, row = true class, column = predicted.
    """

    images: int
    accuracy: float
    mean_per_class: float
    top5: float | None
    per_class: dict[str, float | None]
    confusion: list[list[int]]


def measure(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], classes: list[str]) -> Metrics:
    """Compare scores (n, K) with labels (n,), n > 0.

    A tie never counts in the model's favour: an image whose class shares the highest score with another is predicted
    as that other one.
    """
    count, rows = len(classes), np.arange(len(labels))
    predicted, others = _decided(scores, labels)
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    totals, right = confusion.sum(axis=1), np.diag(confusion)
    shares = [float(r / t) if t else None for r, t in zip(right, totals, strict=True)]
    top5 = None
    if count > TOP:
        own = scores[rows, labels][:, None]
        top5 = float(((others >= own).sum(axis=1) < TOP).mean())
    return Metrics(
        images=len(labels),
        accuracy=float(right.sum() / len(labels)),
        mean_per_class=float(np.mean([share for share in shares if share is not None])),
        top5=top5,
        per_class=dict(zip(classes, shares, strict=True)),
        confusion=confusion.tolist(),
    )


def decisions(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
    """(n,) what scores (n, K) decide for, as `measure` counts it: of equal scores against the label."""
    return _decided(scores, labels)[0]


def _decided(
    scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The decisions, and the scores of the other classes: -inf in the place of the label's."""
    rows, others = np.arange(len(labels)), np.array(scores, np.float64)
    others[rows, labels] = -np.inf
    return np.where(scores[rows, labels] > others.max(axis=1), labels, others.argmax(axis=1)), others


@dataclass(frozen=True)
class GridPoint:
    """Cross-validated accuracy at one value of C: mean and standard deviation over the folds.

    Where an image can be of several classes, mean average precision takes the place of accuracy.
    """

    c: float
    accuracy: float
    deviation: float


@dataclass(frozen=True)
class LabelMetrics:
    """Quality of scores where an image can be of several classes.

    Attributes:
        mean_average_precision: mean over the classes that have images.
        per_class: class -> average precision, the area under precision against recall without interpolation; None
            for a class without images.
    """

    images: int
    mean_average_precision: float
    per_class: dict[str, float | None]


def measure_labels(
    scores: npt.NDArray[np.floating], membership: npt.NDArray[np.bool_], classes: list[str]
) -> LabelMetrics:
    """Compare scores (n, K) with membership (n, K), n > 0."""
    from sklearn.metrics import average_precision_score

    found = [
        float(average_precision_score(own, of_class)) if own.any() else None
        for own, of_class in zip(membership.T, scores.T, strict=True)
    ]
    known = [value for value in found if value is not None]
    mean = float(np.mean(known)) if known else 0.0
    return LabelMetrics(len(scores), mean, dict(zip(classes, found, strict=True)))


@dataclass(frozen=True)
class ValueMetrics:
    """Quality of predicted numbers.

    Attributes:
        mean_squared_error: name -> mean squared error, in the square of its unit.
        r2: name -> 1 - squared error / variance; None where the numbers do not vary.
        mean_r2: mean of those that are not None.
    """

    images: int
    mean_r2: float
    r2: dict[str, float | None]
    mean_squared_error: dict[str, float]


def measure_values(
    predicted: npt.NDArray[np.floating], true: npt.NDArray[np.floating], names: list[str]
) -> ValueMetrics:
    """Compare predicted numbers (n, K) with true ones, n > 0."""
    squared = np.square(predicted - true).mean(axis=0, dtype=np.float64)
    variance = true.var(axis=0, dtype=np.float64)
    shares = [None if v == 0 else float(1 - s / v) for s, v in zip(squared, variance, strict=True)]
    known = [share for share in shares if share is not None]
    mean = float(np.mean(known)) if known else 0.0
    return ValueMetrics(
        len(true), mean, dict(zip(names, shares, strict=True)),
        dict(zip(names, squared.tolist(), strict=True)),
    )  # fmt: skip


AnyMetrics = Metrics | LabelMetrics | ValueMetrics


def metric_lines(metrics: AnyMetrics) -> list[str]:
    """Accuracies, and the confusion matrix or what is confused most; average precisions; or squared errors."""
    if isinstance(metrics, ValueMetrics):
        listed = [
            [printable(name), "" if share is None else f"{share:.4f}", f"{metrics.mean_squared_error[name]:.6g}"]
            for name, share in metrics.r2.items()
        ]
        return [f"R\u00b2 {metrics.mean_r2:.4f}", *table(["value", "R\u00b2", "mean squared error"], listed)]
    if isinstance(metrics, LabelMetrics):
        text = f"mean average precision {metrics.mean_average_precision:.1%}"
        ranked = sorted((value, name) for name, value in metrics.per_class.items() if value is not None)
        if len(ranked) > SHOWN_CLASSES:
            text += f"; the lowest {SHOWN_CLASSES} of {len(ranked)} classes:"
        lowest = [[printable(name), f"{value:.1%}"] for value, name in ranked[:SHOWN_CLASSES]]
        return [text, *table(["class", "average precision"], lowest)]
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


def read_metrics(value: Any, where: str) -> AnyMetrics | None:
    """Metrics as they were written into a report.

    Raises:
        FileFormatError: they are not as declared.
    """
    if value is None:
        return None
    if isinstance(value, dict) and "mean_squared_error" in value:
        return build(ValueMetrics, value, where)
    several = isinstance(value, dict) and "mean_average_precision" in value
    return build(LabelMetrics, value, where) if several else build(Metrics, value, where)
