"""Groups of bars with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from featx.figures.colours import class_colour
from featx.figures.names import height_of, name_places
from featx.figures.sheets import save_figure, set_title


def draw_bars(
    heights: Mapping[str, Sequence[float]],
    deviations: Mapping[str, Sequence[float]] | None,
    groups: Sequence[str],
    what: str,
    picture: Path,
    title: str,
) -> None:
    """Draw a bar of each series for each group, with its deviation.

    Args:
        heights, deviations: series -> a value for each group.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(max(5.0, 1.6 + 1.1 * len(groups)), 4.0 + height_of(groups, 1.1)), layout="constrained", dpi=150
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(heights)
    for number, (name, values) in enumerate(heights.items()):
        places = np.arange(len(groups)) + (number - (len(heights) - 1) / 2) * width
        errors = None if deviations is None else deviations[name]
        axes.bar(
            places, values, 0.92 * width, yerr=errors, capsize=3, label=name, color=class_colour(number),
            error_kw={"linewidth": 0.9},
        )  # fmt: skip
    name_places(axes, groups, 1.1)
    axes.set_ylabel(what, fontsize=9)
    set_title(figure, title)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    save_figure(figure, picture)
