"""A page about how good a head or network is: what it confuses, how sure it is, and its worst mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx import __version__
from featx.artifacts.evaluation import EvaluateReport, Scored
from featx.figures.bars import draw_bars
from featx.figures.matrices import draw_confusion
from featx.figures.roc import draw_reliability, draw_roc
from featx.figures.thumbnails import thumbnails
from featx.heads.quality.measures import Measures
from featx.heads.quality.metrics import LabelMetrics, Metrics, ValueMetrics, decisions, metric_lines
from featx.reporting.page import Section, paragraph, photos, picture, render, table
from featx.runtime.text import plural, printable

_MISTAKES, _SIDE = 36, 128
_MOST_CLASSES = 60  # with a picture of the confusions
_MOST_CURVES = 10


def evaluation_page(report: EvaluateReport, scored: Scored) -> str:
    """The page, in one file."""
    sections = [Section("Summary", "".join(paragraph(line) for line in _summary(report)))]
    metrics = report.metrics
    if isinstance(metrics, ValueMetrics):
        lines = [
            [printable(name), "" if share is None else f"{share:.4f}", f"{metrics.mean_squared_error[name]:.6g}"]
            for name, share in metrics.r2.items()
        ]
        sections.append(Section("Values", table(["value", "R\u00b2", "mean squared error"], lines)))
        return render(f"featx evaluate: {report.head.name}", sections, f"featx {__version__}")
    classes = [printable(name) for name in metrics.per_class]
    if isinstance(metrics, LabelMetrics):
        values = {"average precision": [100 * (value or 0.0) for value in metrics.per_class.values()]}
        sections.append(Section("Classes", _bars(values, classes, "average precision (%)")))
    else:
        sections += _of_one_class_each(report, metrics, scored, classes)
    title = f"{report.head.name} on {report.features.name}"
    return render(f"featx evaluate: {title}", sections, f"featx {__version__}")


def _summary(report: EvaluateReport) -> list[str]:
    """The lines of the report, without its tables."""
    lines = report.lines()
    measured = report.measures.lines() if report.measures else []
    return [lines[0], metric_lines(report.metrics)[0], *measured, *(one for one in lines if one.startswith("note:"))]


def _of_one_class_each(report: EvaluateReport, metrics: Metrics, scored: Scored, classes: list[str]) -> list[Section]:
    counts, measures = np.array(metrics.confusion, np.int64), report.measures
    found = []
    if len(classes) <= _MOST_CLASSES:
        drawn = picture(lambda path: draw_confusion(counts, classes, path, report.head.name), "confusion matrix")
        found.append(Section("Confusion", drawn))
    if measures is not None:
        found.append(_classes(measures, metrics, classes))
        if measures.reliability:
            text = (
                f"How often images are right against how sure the model is of them; on the diagonal it is as right "
                f"as it says. Expected calibration error {measures.calibration_error or 0.0:.1%} (15 bins)."
            )
            bins = measures.reliability
            drawn = picture(lambda path: draw_reliability(bins, path, report.head.name), "reliability curve")
            found.append(Section("Reliability", paragraph(text) + drawn))
    curves = _curves(scored, classes)
    if curves:
        drawn = picture(
            lambda path: draw_roc(curves, path, _CURVES, ("other images", "images of the class")), "ROC curves"
        )
        found.append(Section("ROC", drawn))
    found.append(_mistakes(scored, classes))
    return found


_CURVES = "Each class against the rest, by the threshold"


def _bars(values: dict[str, list[float]], classes: list[str], what: str) -> str:
    def draw(path: Path) -> None:
        draw_bars(values, None, classes, what, path, "")

    return picture(draw, what) if len(classes) <= _MOST_CLASSES else ""


def _classes(measures: Measures, metrics: Metrics, classes: list[str]) -> Section:
    columns = {"precision": measures.precision, "recall": measures.recall, "F1": measures.f1}
    values = {name: [100 * (value or 0.0) for value in of.values()] for name, of in columns.items()}
    sizes = np.array(metrics.confusion).sum(axis=1)
    rows = [
        [name, str(size), *("" if value is None else f"{value:.1%}" for value in each)]
        for name, size, *each in zip(classes, sizes, *(of.values() for of in columns.values()), strict=True)
    ]
    body = _bars(values, classes, "precision, recall, F1 (%)")
    return Section("Classes", body + table(["class", "images", *columns], rows))


def _curves(scored: Scored, classes: list[str]) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """class -> false and true positive rates; the ten largest classes where there are more."""
    from sklearn.metrics import roc_curve

    sizes = np.bincount(scored.labels, minlength=len(classes))
    largest = sorted(np.argsort(-sizes, kind="stable")[:_MOST_CURVES].tolist())
    found = {}
    for label in largest:
        own = scored.labels == label
        if own.any() and not own.all():
            wrong, right, _ = roc_curve(own, scored.outputs[:, label])
            found[classes[label]] = wrong, right
    return found


def _mistakes(scored: Scored, classes: list[str]) -> Section:
    rows = np.arange(len(scored.labels))
    predicted = decisions(scored.scores, scored.labels)
    wrong = np.flatnonzero(predicted != scored.labels)
    if not len(wrong):
        return Section("Worst mistakes", paragraph("There are none."))
    margins = scored.outputs[rows, predicted] - scored.outputs[rows, scored.labels]
    worst = wrong[np.argsort(-margins[wrong], kind="stable")][:_MISTAKES].tolist()
    seen, missing = thumbnails(worst, scored.content, _SIDE)
    captions = [
        f"{classes[scored.labels[place]]}, taken for {classes[predicted[place]]} ({printable(scored.paths[place])})"
        for place in worst
    ]
    text = f"The {len(worst)} of {plural(len(wrong), 'mistake')} that are furthest from right."
    if missing:
        text += f" {plural(len(missing), 'image')} cannot be read any more: grey."
    return Section("Worst mistakes", paragraph(text) + photos(list(seen), captions))
