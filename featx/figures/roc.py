"""Curves in a square: ROC, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.figures.colours import class_colour
from featx.figures.sheets import save_figure, set_title
from featx.heads.quality.measures import Bin


def draw_roc(
    curves: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
    picture: Path,
    title: str,
    of: tuple[str, str] = ("different pairs", "same pairs"),
) -> None:
    """Draw curves: name -> shares that are accepted, of those that should not be and of those that should (`of`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    set_title(figure, title)
    axes = figure.subplots()
    for number, (name, (wrong, right)) in enumerate(curves.items()):
        axes.plot(wrong, right, color=class_colour(number), linewidth=1.5, label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":", label="chance")
    axes.set_xlabel(f"{of[0]} that are accepted")
    axes.set_ylabel(f"{of[1]} that are accepted")
    axes.set_aspect("equal")
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=8, loc="lower right")
    save_figure(figure, picture)


def draw_reliability(bins: Sequence[Bin], picture: Path, title: str) -> None:
    """Draw accuracy against confidence, and how many images each bin has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 6.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    set_title(figure, title)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    confidence = [one.confidence for one in bins]
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":", label="as right as it says")
    axes.plot(confidence, [one.accuracy for one in bins], marker="o", linewidth=1.5, color=class_colour(0))
    axes.set_ylabel("accuracy")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=8, loc="upper left")
    below.bar(confidence, [one.images for one in bins], 0.9 / 15, color=class_colour(0))
    below.set_xlabel("confidence: the probability of the decision")
    below.set_ylabel("images")
    save_figure(figure, picture)
