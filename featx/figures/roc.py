"""ROC curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.figures.colours import class_colour
from featx.figures.sheets import save_figure, set_title


def draw_roc(
    curves: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]], picture: Path, title: str
) -> None:
    """Draw curves: name -> shares of different pairs that are accepted, and of the same."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    set_title(figure, title)
    axes = figure.subplots()
    for number, (name, (wrong, right)) in enumerate(curves.items()):
        axes.plot(wrong, right, color=class_colour(number), linewidth=1.5, label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":", label="chance")
    axes.set_xlabel("different pairs that are accepted")
    axes.set_ylabel("same pairs that are accepted")
    axes.set_aspect("equal")
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=8, loc="lower right")
    save_figure(figure, picture)
