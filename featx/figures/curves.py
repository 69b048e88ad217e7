"""Loss and accuracy against epoch, from the metrics a training has written."""

from __future__ import annotations

import json
from pathlib import Path

from featx.atomic import replacing


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw a PNG of the entries in metrics.jsonl, one per epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    epochs = [entry["epoch"] for entry in entries]
    figure = Figure(figsize=(9.0, 3.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    for axes, key, factor, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("loss", "accuracy (%)"), strict=True
    ):
        axes.plot(epochs, [factor * entry[key] for entry in entries], marker="o", markersize=3, label="training")
        if f"val_{key}" in entries[0]:
            found = [factor * entry[f"val_{key}"] for entry in entries]
            axes.plot(epochs, found, marker="s", markersize=3, label="validation")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(linewidth=0.3)
        axes.legend(fontsize=8)
    with replacing(picture) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
