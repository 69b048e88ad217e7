"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.figures.sheets import save_figure, set_title

MOST_NUMBERS = 20  # classes up to which the counts are written into the cells


def draw_confusion(counts: npt.NDArray[np.int64], classes: Sequence[str], picture: Path, title: str) -> None:
    """Draw counts (K, K), row = true class, column = predicted; colours are shares of the row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(classes)
    side = float(np.clip(0.42 * count + 2.5, 4.5, 14))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    set_title(figure, title)
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="share of the true class")
    size = float(np.clip(260 / max(count, 1), 3, 8))
    names = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= MOST_NUMBERS:
        for row in range(count):
            for column in range(count):
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.6 else "black"
                    axes.text(
                        column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour
                    )
    save_figure(figure, picture)
