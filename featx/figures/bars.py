"""Groups of bars, and boxes, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.figures.colours import class_colour
from featx.figures.names import height_of, name_places
from featx.figures.sheets import save_figure, set_title

_STEP = 0.6  # inches from one box to the next


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


def draw_encoding(
    r: npt.NDArray[np.float64],
    ceiling: npt.NDArray[np.float64] | None,
    layers: Sequence[str],
    picture: Path,
    title: str,
) -> None:
    """Draw the correlations r (L, R) of all responses by layer as boxes, and the median noise ceiling (R,)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(max(4.5, 1.5 + _STEP * len(layers)), 3.8 + height_of(layers, _STEP)), layout="constrained", dpi=150
    )
    FigureCanvasAgg(figure)
    set_title(figure, title, 9)
    axes = figure.subplots()
    known = [of_layer[np.isfinite(of_layer)] for of_layer in r]
    axes.boxplot(known, positions=range(len(layers)), widths=0.5, showfliers=False, medianprops={"color": "#c0392b"})
    if ceiling is not None and np.isfinite(ceiling).any():
        axes.axhline(
            float(np.nanmedian(ceiling)), color="grey", linewidth=1, linestyle="--", label="median noise ceiling"
        )
        axes.legend(fontsize=8)
    axes.axhline(0, color="grey", linewidth=0.8, linestyle=":")
    name_places(axes, layers, _STEP)
    axes.set_ylabel("correlation of held-out predictions")
    axes.grid(axis="y", linewidth=0.3)
    save_figure(figure, picture)
