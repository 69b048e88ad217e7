"""`featx show filters`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.figures.sheets import BOTH_SIDES, Tile, draw_sheet
from featx.networks.external.code import trust_code
from featx.networks.registry import refuse_unknown
from featx.networks.weights_file import digest_of_weights
from featx.options.show import FiltersConfig
from featx.runtime.progress import SILENT, Reporter

NUMBERS = "filters.npz"
_MOST_DEEP = 64  # filters of a deeper layer on one sheet


def show_filters(
    net: str, output: str | os.PathLike[str], config: FiltersConfig | None = None, *, reporter: Reporter = SILENT
) -> ShowReport:
    """Draw the filters of a convolution: of the first as colours, of deeper ones their strongest input slices.

    Writes filters.png, and filters.npz with `weights` (F, C, h, w) and `slices` (F, k).

    Raises:
        UsageError and its children: an unknown network, weights or layer.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config = config or FiltersConfig()
    trust_code(net)
    refuse_unknown(net)
    picture = f"filters.{config.format}"
    folder = ShownFolder(Path(output), [picture, NUMBERS], "featx show filters", reporter)
    plan = plan_of(config, show="filters", net=net, weights=digest_of_weights(net, config.weights))
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    from featx.explain.filters import filters_of
    from featx.networks.load import load_network
    from featx.networks.weights import weights_of

    loaded = load_network(net, weights_of(net, config.weights), reporter.download)
    found = filters_of(loaded.network, config.layer, scale=config.scale, slices=config.slices)
    count, channels, height, width = found.weights.shape
    if found.slices.size:
        shown = min(count, _MOST_DEEP)
        tiles = [
            Tile(found.pictures[f, k], f"{f}: input {found.slices[f, k]}", BOTH_SIDES)
            for f in range(shown)
            for k in range(found.slices.shape[1])
        ]
        columns = found.slices.shape[1] * max(1, 12 // found.slices.shape[1])
        what = f"the first {shown} of {count} filters" if shown < count else f"{count} filters"
        what += f", of each the {found.slices.shape[1]} strongest of {channels} input slices"
    else:
        tiles = [Tile(picture) for picture in found.pictures]
        columns = int(np.ceil(np.sqrt(count)))
        what = f"{count} filters"
    sheet = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    scale = "each scaled by its own largest weight" if config.scale == "each" else "all on one scale"
    title = f"{net} {found.name}: {what} of {height} x {width}, {scale}"
    folder.begin(plan)
    draw_sheet(sheet, folder.path / picture, title, inches=0.9)
    folder.save_arrays(NUMBERS, {"weights": found.weights, "slices": found.slices})
    row = [found.name, str(count), f"{channels} x {height} x {width}", f"{np.abs(found.weights).max():.3f}"]
    return folder.finish(plan, ["layer", "filters", "shape", "largest weight"], [row])
