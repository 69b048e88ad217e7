"""Accuracy against layer, with error bars, from the table `featx probe` has written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featx.figures.names import height_of, name_places
from featx.figures.sheets import save_figure, set_title
from featx.options.heads import HEADS

MARKERS = {"svm": "o", "softmax": "s"}


def draw_layers(found: Mapping[str, Any], picture: Path) -> None:
    """Draw a PNG of the accuracies in probe.json."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row["layer"] for row in found["rows"]))
    figure = Figure(
        figsize=(max(5.0, 1.5 + 0.6 * len(layers)), 4.0 + height_of(layers, 0.6)), layout="constrained", dpi=150
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for offset, head in enumerate(found["heads"]):
        rows = [row for row in found["rows"] if row["head"] == head]
        places = [layers.index(row["layer"]) + 0.06 * (offset - (len(found["heads"]) - 1) / 2) for row in rows]
        axes.errorbar(
            places, [100 * row["accuracy"] for row in rows], [100 * row["deviation"] for row in rows],
            label=HEADS[head], marker=MARKERS[head], markersize=4, capsize=3, linewidth=1.2,
        )  # fmt: skip
    axes.axhline(100 * found["chance"], color="grey", linewidth=0.8, linestyle=":", label="chance")
    name_places(axes, layers, 0.6)
    axes.set_ylabel("mean accuracy per class (%)")
    set_title(figure, f"{found['title']}: {found['per_class']} images per class, {found['repeats']} repeats", 9)
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, picture)
