"""Matrices as pictures: confusions, similarities, dissimilarities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.figures.names import height_of, name_places
from featx.figures.sheets import HEAT, save_figure, set_title

MOST_NUMBERS = 20  # rows or columns up to which the numbers are written into the cells
_SIDE = 1200  # pixels of a picture of an RDM


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


def draw_matrix(
    values: npt.NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
    picture: Path,
    title: str,
    axes_of: tuple[str, str],
) -> None:
    """Draw values (R, C) from 0 to 1 with their names.

    Args:
        axes_of: what the rows and the columns are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cell = 0.62
    width, height = max(4.5, cell * len(columns) + 2.5), max(3.5, cell * len(rows) + 1.8)
    figure = Figure(figsize=(width, height + height_of(columns, cell)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    set_title(figure, title)
    axes = figure.subplots()
    drawn = axes.imshow(values, cmap="viridis", vmin=min(0.0, float(np.nanmin(values))), vmax=1, aspect="auto")
    figure.colorbar(drawn, ax=axes, shrink=0.8)
    name_places(axes, columns, cell)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.set_ylabel(axes_of[0])
    axes.set_xlabel(axes_of[1])
    if max(values.shape) <= MOST_NUMBERS:
        for row, column in np.ndindex(*values.shape):
            colour = "black" if values[row, column] > 0.55 else "white"
            axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=7, color=colour)
    save_figure(figure, picture)


def draw_rdm(values: npt.NDArray[np.floating], groups: Sequence[tuple[str, int]], picture: Path, title: str) -> None:
    """Draw dissimilarities (N, N); large ones are thinned out.

    Args:
        groups: of rows that follow each other: name and number; their borders are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    step = max(1, -(-len(values) // _SIDE))
    figure = Figure(figsize=(7.2, 6.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    set_title(figure, title)
    axes = figure.subplots()
    shown = np.asarray(values[::step, ::step])
    count = len(values)
    drawn = axes.imshow(shown, cmap=HEAT, extent=(0, count, count, 0), interpolation="nearest")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="dissimilarity")
    ends = np.cumsum([0, *(size for _, size in groups)])
    if 1 < len(groups) <= MOST_NUMBERS:
        for end in ends[1:-1]:
            axes.axhline(end, color="white", linewidth=0.5)
            axes.axvline(end, color="white", linewidth=0.5)
        middles = (ends[:-1] + ends[1:]) / 2
        axes.set_xticks(middles, [name for name, _ in groups], rotation=90, fontsize=7)
        axes.set_yticks(middles, [name for name, _ in groups], fontsize=7)
    else:
        axes.set_xlabel("image")
        axes.set_ylabel("image")
    save_figure(figure, picture)
