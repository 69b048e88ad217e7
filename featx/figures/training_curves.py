"""Loss and accuracy against epoch, from the metrics a training has written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.figures.sheets import save_figure
from featx.runtime.stored import convert, parse_json


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw a PNG of the entries in metrics.jsonl, one per epoch; that of the start has no training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = metrics.read_text().splitlines()
    read = [convert(parse_json(line, str(metrics)), dict[str, float | None], str(metrics)) for line in lines]
    entries = [{name: value for name, value in entry.items() if value is not None} for entry in read]
    figure = Figure(figsize=(9.0, 3.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    numbers = any("val_r2" in entry for entry in entries)
    quality = ("r2", 1, "R\u00b2") if numbers else ("accuracy", 100, "accuracy (%)")
    for axes, (key, factor, label) in zip(figure.subplots(1, 2), (("loss", 1, "loss"), quality), strict=True):
        lines_of = [(key, "o", "training"), (f"val_{key}", "s", "validation")]
        if key == "accuracy":
            lines_of += [
                ("val_balanced", "^", "validation, mean per class"),
                ("val_ap", "^", "validation, average precision"),
            ]
        for name, marker, label_of_line in lines_of:
            points = [(entry["epoch"], factor * entry[name]) for entry in entries if name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=label_of_line)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(linewidth=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    save_figure(figure, picture)


def draw_range_test(
    factors: npt.NDArray[np.float64], losses: npt.NDArray[np.float64], suggested: float | None, picture: Path
) -> None:
    """Draw the loss against the factor on all rates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(factors, losses, linewidth=1.4)
    axes.set_xscale("log")
    axes.set_xlabel("factor on the learning rates")
    axes.set_ylabel("loss, smoothed")
    top = float(np.percentile(losses, 95))
    axes.set_ylim(float(losses.min()) - 0.05 * (top - float(losses.min())), top * 1.1)
    if suggested is not None:
        axes.axvline(suggested, color="#c0392b", linewidth=1, linestyle="--", label=f"suggested: {suggested:.3g}")
        axes.legend(fontsize=8)
    axes.grid(linewidth=0.3)
    save_figure(figure, picture)
