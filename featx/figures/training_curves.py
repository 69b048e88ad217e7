"""Loss and accuracy against epoch, from the metrics a training has written."""

from __future__ import annotations

from pathlib import Path

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
    for axes, key, factor, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("loss", "accuracy (%)"), strict=True
    ):
        for name, marker, label_of_line in ((key, "o", "training"), (f"val_{key}", "s", "validation")):
            points = [(entry["epoch"], factor * entry[name]) for entry in entries if name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=label_of_line)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(linewidth=0.3)
        axes.legend(fontsize=8)
    save_figure(figure, picture)
