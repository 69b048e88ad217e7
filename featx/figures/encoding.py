"""How well responses are predicted, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.figures.names import height_of, name_places
from featx.figures.sheets import save_figure, set_title

_STEP = 0.6  # inches from one layer to the next


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
