"""The sections of a page that are about a training or a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from featx.artifacts.finetuned_run import FinetunedRun
from featx.artifacts.probe_folder import ProbeFolder
from featx.errors import FileFormatError
from featx.figures.layer_accuracy import draw_layers
from featx.figures.matrices import draw_confusion
from featx.figures.training_curves import draw_curves
from featx.heads.quality.metrics import Metrics, metric_lines
from featx.networks.run_folder import read_run
from featx.reporting.page import Section, paragraph, picture, table
from featx.runtime.stored import convert, read_json_file
from featx.runtime.text import plural, printable

METRICS = "metrics.jsonl"
_MOST_CLASSES = 60


def run_sections(folder: Path) -> list[Section]:
    """What a training was, and how good its network is.

    Raises:
        FileFormatError: the training is not finished.
    """
    run = read_run(folder)
    run.refuse_unfinished()
    stored = FinetunedRun(folder).read()
    report = None if stored is None else stored.result
    if report is None:
        raise FileFormatError(f"{folder} has no report; run the same featx finetune command again")
    rows = [
        ["network", report.backbone],
        ["classes", f"{len(report.classes):,}"],
        ["images", f"{report.train:,} to train on, {report.val:,} to validate on"],
        ["epochs", f"{report.epochs}, the weights of epoch {report.best_epoch} were kept"],
        ["weights", f"sha256 {report.weights_sha256}"],
    ]
    layers = [
        [layer.layer, f"{layer.parameters:,}", f"{layer.rate:g}", f"{layer.moved:.2%}"] for layer in report.layers
    ]
    body = table(["", ""], rows) + table(["layer", "parameters", "learning rate", "moved by"], layers)
    found = [Section("Training", body)]
    if (folder / METRICS).exists():
        drawn = picture(lambda path: draw_curves(folder / METRICS, path), "loss and accuracy by epoch")
        found.append(Section("Learning curves", drawn))
    if report.metrics is not None:
        metrics = report.metrics
        if not isinstance(metrics, Metrics):
            return [*found, Section("Validation", "".join(paragraph(line) for line in metric_lines(metrics)))]
        counts, names = np.array(metrics.confusion, np.int64), [printable(name) for name in report.classes]
        body = paragraph(f"{metrics.accuracy:.1%} of {plural(metrics.images, 'validation image')} are right.")
        if len(names) <= _MOST_CLASSES:
            body += picture(lambda path: draw_confusion(counts, names, path, "validation images"), "confusion matrix")
        found.append(Section("Confusion in validation", body))
    return found


def probe_sections(folder: Path) -> list[Section]:
    """Which layer separates the classes best.

    Raises:
        FileFormatError: the probe is not finished.
    """
    stored = ProbeFolder(folder).read()
    if stored is None or stored.result is None:
        raise FileFormatError(f"{folder} holds no finished probe; run the same featx probe command again")
    report = stored.result
    drawn: dict[str, Any] = convert(read_json_file(folder / "probe.json"), dict[str, Any], str(folder / "probe.json"))
    rows = [[row.layer, row.head, f"{100 * row.accuracy:.1f}", f"{100 * row.deviation:.1f}"] for row in report.rows]
    text = (
        f"{report.title}: {plural(report.per_class, 'image')} per class to learn from, "
        f"{plural(report.repeats, 'repeat')}, {plural(report.classes, 'class', 'classes')}."
    )
    body = paragraph(text) + picture(lambda path: draw_layers(drawn, path), "accuracy by layer")
    return [Section("Which layer transfers best", body + table(["layer", "head", "accuracy (%)", "+-"], rows))]
