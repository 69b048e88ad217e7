"""Pictures in rows and columns, in one style: black on white, one typeface, colours that everybody can tell apart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.runtime.files import replacing

HEAT = "inferno"  # from nothing to most
BOTH_SIDES = "PuOr_r"  # against and for
_INCHES = 2.2  # of a tile


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        values: (H, W, 3) uint8, or (H, W) of any range: then it is drawn in colours.
        title: above it.
        colours: of (H, W); HEAT begins at 0 or the least value, BOTH_SIDES has 0 in its middle.
        over: (H, W, 3) uint8, drawn below with the values half transparent.
        bar: whether a scale stands beside it; it has all values.
    """

    values: npt.NDArray[Any]
    title: str = ""
    colours: str = HEAT
    over: npt.NDArray[np.uint8] | None = None
    bar: bool = False


def draw_sheet(
    rows: Sequence[Sequence[Tile]], picture: Path, title: str, *, inches: float = _INCHES, flat: bool = False
) -> None:
    """Draw tiles in rows; the format is that of the file's ending: PNG, SVG or PDF.

    Args:
        inches: width of a tile.
        flat: tiles are twice as wide as high.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(
        figsize=(inches * columns, inches * len(rows) * (0.62 if flat else 1.12) + 0.5), layout="constrained", dpi=150
    )
    FigureCanvasAgg(figure)
    set_title(figure, title)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes in axes_row:
            axes.set_axis_off()
        for axes, tile in zip(axes_row, row, strict=False):
            _draw(figure, axes, tile)
    save_figure(figure, picture)


def set_title(figure: Any, title: str, size: float = 10) -> None:
    """Over the whole figure, broken into lines that fit its width."""
    characters = max(20, int(122 * figure.get_figwidth() / size))
    figure.suptitle(textwrap.fill(title, characters), fontsize=size)


def mosaic(pictures: Sequence[npt.NDArray[np.uint8] | None], columns: int, gap: int = 3) -> npt.NDArray[np.uint8]:
    """One picture (H, W, 3) of pictures (h, w, 3), row by row, white between them and where there is none."""
    height, width = next(one.shape[:2] for one in pictures if one is not None)
    rows = -(-len(pictures) // columns)
    found = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        if picture is not None:
            top, left = place // columns * (height + gap), place % columns * (width + gap)
            found[top : top + height, left : left + width] = picture
    return found


def unit_tiles(
    title: str,
    patches: npt.NDArray[np.uint8],
    projections: npt.NDArray[Any],
    there: npt.NDArray[np.bool_],
    columns: int,
) -> list[Tile]:
    """Two tiles of one unit: the patches (k, h, w, 3) that excite it most, and beside them what of each does.

    Args:
        projections: (k, h, w, 3), drawn around grey, each for itself.
        there: (k,) whether there is such an image.
    """
    if not there.any():
        blank = np.full((8, 8, 3), 255, np.uint8)
        return [Tile(blank, f"{title}: silent"), Tile(blank)]
    seen = [one if is_there else None for one, is_there in zip(patches, there, strict=True)]
    signals = [around_grey(one) if is_there else None for one, is_there in zip(projections, there, strict=True)]
    return [Tile(mosaic(seen, columns), title), Tile(mosaic(signals, columns), "what excites it")]


def around_grey(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """(h, w, 3) of signed values as colours: 0 is grey, the largest size is black or white."""
    most = float(np.abs(values).max()) or 1.0
    return np.rint(127.5 + 127.5 * (values.astype(np.float64) / most)).astype(np.uint8)


def save_figure(figure: Any, picture: Path) -> None:
    """Write a figure in the format of the file's ending; no date in it, so that bytes repeat."""
    kind = picture.suffix[1:].lower()
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    import matplotlib

    # Names inside an SVG are random otherwise, and text that is text can be edited.
    with replacing(picture) as partial, matplotlib.rc_context({"svg.hashsalt": "featx", "svg.fonttype": "none"}):
        figure.savefig(partial, format=kind, metadata=metadata)


def _draw(figure: Any, axes: Any, tile: Tile) -> None:
    axes.set_title(tile.title, fontsize=8)
    if tile.over is not None:
        axes.imshow(tile.over)
    if tile.values.ndim == 3:
        axes.imshow(tile.values, interpolation="antialiased")
        return
    low, high = _range(tile)
    shape = tile.values.shape if tile.over is None else tile.over.shape[:2]
    drawn = axes.imshow(
        tile.values, cmap=tile.colours, vmin=low, vmax=high, interpolation="nearest",
        alpha=1.0 if tile.over is None else 0.6, extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5),
    )  # fmt: skip
    if tile.bar:
        figure.colorbar(drawn, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)


def _range(tile: Tile) -> tuple[float, float]:
    """Least and greatest value of the colours; the greatest percent is cut off: one pixel would hide all others."""
    if tile.colours == BOTH_SIDES:
        most = float(np.percentile(np.abs(tile.values), 99)) or 1.0
        return -most, most
    if tile.bar:
        return float(tile.values.min()), float(tile.values.max())
    return min(0.0, float(tile.values.min())), float(np.percentile(tile.values, 99)) or 1.0
