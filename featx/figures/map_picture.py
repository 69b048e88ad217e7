"""The points of a map as a picture, coloured by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.figures.colours import class_colour, class_mark
from featx.figures.sheets import save_figure

MOST_IN_LEGEND = 49  # colours times marks


def draw_map(
    points: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int32],
    classes: Sequence[str],
    picture: Path,
    title: str,
) -> None:
    """Draw points (N, 2), each in the colour and with the mark of its class.

    With more than 49 classes, which no eye tells apart, the largest have their name in the middle of their points
    where it covers no other name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    there = [int(label) for label in np.unique(labels)]
    named = [label for label in there if label >= 0]
    with_legend = 0 < len(named) <= MOST_IN_LEGEND
    figure = Figure(figsize=(9.5 if with_legend else 8.0, 7.5), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    size = float(np.clip(20_000 / len(points), 4, 30))
    for label in there:
        own = points[labels == label]
        name = classes[label] if label >= 0 else "no class"
        axes.scatter(
            own[:, 0], own[:, 1], s=size, c=class_colour(label), marker=class_mark(label), linewidths=0,
            label=name[:28], alpha=0.8,
        )  # fmt: skip
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    if with_legend:
        columns = 1 if len(there) <= 25 else 2
        scale = float(np.sqrt(40 / size))  # marks of one size, however small the points
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, markerscale=scale, ncols=columns)
    else:
        _name_places(figure, axes, points, labels, named, classes)
    save_figure(figure, picture)


def _name_places(
    figure: Any,
    axes: Any,
    points: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int32],
    named: Sequence[int],
    classes: Sequence[str],
) -> None:
    """The names of classes in the middle of their points, the largest class first; none over another."""
    from matplotlib.patheffects import withStroke

    figure.canvas.draw()
    boxes: list[Any] = []
    for label in sorted(named, key=lambda label: -int((labels == label).sum())):
        middle = np.median(points[labels == label], axis=0)
        text = axes.text(
            middle[0], middle[1], classes[label][:24], fontsize=7, ha="center", va="center",
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
        box = text.get_window_extent().expanded(1.05, 1.1)
        if any(box.overlaps(other) for other in boxes):
            text.remove()
        else:
            boxes.append(box)
