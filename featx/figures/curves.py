"""Curves of several images side by side, with what was done to them drawn below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.figures.colours import class_colour
from featx.figures.sheets import mosaic, save_figure, set_title


@dataclass(frozen=True)
class Panel:
    """One diagram: a line for each image."""

    title: str
    lines: Sequence[npt.NDArray[Any]]


Column = tuple[str, npt.NDArray[np.float64], Sequence[Panel], Sequence[npt.NDArray[np.uint8]]]


def draw_panels(columns: Sequence[Column], names: Sequence[str], picture: Path, title: str) -> None:
    """Draw columns of diagrams.

    Args:
        columns: of each what its x axis is, the places on it, the diagrams from top to bottom, and the pictures of
            places evenly from the first to the last.
        names: of the lines.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(columns[0][2])
    figure = Figure(figsize=(4.2 * len(columns), 2.2 * count + 1.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    set_title(figure, title, 11)
    grid = figure.subplots(count + 1, len(columns), squeeze=False, height_ratios=[*[2.2] * count, 1.0])
    for place, (what, places, panels, strip) in enumerate(columns):
        for axes, panel in zip(grid[:-1, place], panels, strict=True):
            for number, line in enumerate(panel.lines):
                axes.plot(places, line, color=class_colour(number), linewidth=1.3, label=names[number])
            axes.set_title(panel.title, fontsize=9)
            axes.set_ylim(-0.03, 1.03)
            axes.grid(linewidth=0.3)
            axes.tick_params(labelsize=8)
        grid[-2, place].set_xlabel(what, fontsize=9)
        grid[-1, place].imshow(mosaic(list(strip), len(strip)))
        grid[-1, place].set_axis_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    shown = [name if len(name) <= 40 else name[:39] + "…" for name in labels]
    figure.legend(handles, shown, loc="outside lower center", ncols=min(len(shown), 4), fontsize=8)
    save_figure(figure, picture)
