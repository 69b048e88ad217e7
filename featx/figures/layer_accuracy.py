"""Accuracy against layer, with error bars, from the table `featx probe` has written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.figures.colours import class_colour
from featx.figures.names import height_of, name_places
from featx.figures.sheets import save_figure, set_title
from featx.options.heads import PROBED

MARKERS = {"svm": "o", "softmax": "s", "mean": "^", "knn": "v", "ridge": "D"}


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
            label=PROBED[head], marker=MARKERS[head], markersize=4, capsize=3, linewidth=1.2,
        )  # fmt: skip
    axes.axhline(100 * found["chance"], color="grey", linewidth=0.8, linestyle=":", label="chance")
    name_places(axes, layers, 0.6)
    axes.set_ylabel("mean accuracy per class (%)")
    set_title(figure, f"{found['title']}: {found['per_class']} images per class, {found['repeats']} repeats", 9)
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, picture)


def draw_learning_curves(found: Mapping[str, Any], picture: Path) -> None:
    """Draw the accuracies against images per class, a diagram for each head."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    layers = list(dict.fromkeys(row["layer"] for row in found["rows"]))
    whole = [{**row, "per_class": found["per_class"]} for row in found["rows"]]
    count = len(found["heads"])
    figure = Figure(figsize=(4.4 * count + 1.6, 3.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    set_title(figure, f"{found['title']}: accuracy by images per class, {found['repeats']} repeats", 9)
    grid = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    for axes, head in zip(grid, found["heads"], strict=True):
        for number, layer in enumerate(layers):
            points = [one for one in (*found["curve"], *whole) if (one["layer"], one["head"]) == (layer, head)]
            points.sort(key=lambda one: one["per_class"])
            axes.errorbar(
                [one["per_class"] for one in points], [100 * one["accuracy"] for one in points],
                [100 * one["deviation"] for one in points], label=layer, color=class_colour(number), marker="o",
                markersize=3, capsize=2, linewidth=1.1,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(sorted({one["per_class"] for one in (*found["curve"], *whole)}))
        axes.get_xaxis().set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
        axes.set_title(PROBED[head], fontsize=9)
        axes.set_xlabel("images per class")
        axes.grid(linewidth=0.3)
    grid[0].set_ylabel("mean accuracy per class (%)")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    save_figure(figure, picture)


@dataclass(frozen=True)
class Line:
    """Accuracies of one probe and head.

    Attributes:
        values: layer -> mean accuracy and deviation, 0 to 1.
        published: somebody else's numbers: drawn dashed.
    """

    name: str
    values: Mapping[str, tuple[float, float]]
    published: bool = False


def draw_lines(lines: Sequence[Line], chance: float | None, picture: Path, title: str) -> None:
    """Draw several probes over each other, their layers in one order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = merged([list(line.values) for line in lines])
    figure = Figure(
        figsize=(max(5.5, 1.5 + 0.6 * len(layers)), 4.2 + 0.22 * len(lines) + height_of(layers, 0.6)),
        layout="constrained", dpi=150,
    )  # fmt: skip
    FigureCanvasAgg(figure)
    set_title(figure, title, 10)
    axes = figure.subplots()
    markers = list(MARKERS.values())
    for number, line in enumerate(lines):
        own = [layer for layer in layers if layer in line.values]
        means, spreads = zip(*(line.values[layer] for layer in own), strict=True)
        axes.errorbar(
            [layers.index(layer) for layer in own], [100 * mean for mean in means],
            [100 * spread for spread in spreads], label=line.name, color=class_colour(number),
            marker=markers[number % len(markers)], markersize=4, capsize=3, linewidth=1.2,
            linestyle="--" if line.published else "-",
        )  # fmt: skip
    if chance is not None:
        axes.axhline(100 * chance, color="grey", linewidth=0.8, linestyle=":", label="chance")
    name_places(axes, layers, 0.6)
    axes.set_ylabel("mean accuracy per class (%)")
    axes.grid(axis="y", linewidth=0.3)
    figure.legend(loc="outside lower center", fontsize=8, ncols=1 if len(lines) < 5 else 2)
    save_figure(figure, picture)


def merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """All names, each behind the one it follows in the first order that has it.

    >>> merged([["conv1", "conv3", "fc7"], ["conv1", "conv2", "conv3", "conv4"]])
    ['conv1', 'conv2', 'conv3', 'conv4', 'fc7']
    """
    found: list[str] = []
    for order in orders:
        place = 0
        for name in order:
            if name not in found:
                found.insert(place, name)
            place = found.index(name) + 1
    return found
