"""`featx show maps`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.explain.images import Shown, layer_of_maps, subject_for
from featx.figures.sheets import Tile, draw_sheet
from featx.options.show import MapsConfig
from featx.runtime.progress import SILENT, Reporter

NUMBERS = "maps.npz"


def show_maps(
    images: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: MapsConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Draw the activation maps of images, those with the largest sum first.

    Writes NAME.LAYER.png for every image and layer, and maps.npz with `LAYER` (N, k, H, W) and `LAYER units` (N, k),
    which maps they are.

    Raises:
        UsageError and its children: as `featx extract`; a layer that is not of maps.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config = config or MapsConfig()
    shown = Shown(images)
    asked = config.layers or layer_of_maps(config, None)
    names = _layers(config, asked)
    pictures = [f"{stem}.{layer}.{config.format}" for stem in shown.stems for layer in names]
    folder = ShownFolder(Path(output), [*pictures, NUMBERS], "featx show maps", reporter)
    plan = shown.plan(config, show="maps")
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    import torch

    subject = subject_for(config, asked, reporter)
    pixels = subject.pixels(shown.contents)
    with torch.inference_mode():
        outputs = subject.network(subject.normalised(pixels))
    folder.begin(plan)
    arrays = {}
    rows = []
    for layer in names:
        maps = outputs[layer].float().cpu()
        count = min(config.strongest, maps.shape[1])
        order = maps.double().sum((2, 3)).argsort(dim=1, descending=True, stable=True)[:, :count]
        arrays[layer] = torch.stack([one[chosen] for one, chosen in zip(maps, order, strict=True)]).numpy()
        arrays[f"{layer} units"] = order.numpy()
        for place, stem in enumerate(shown.stems):
            tiles = [Tile(pixels[place], "what the network sees")]
            tiles += [
                Tile(one, f"map {unit}")
                for one, unit in zip(arrays[layer][place], order[place].tolist(), strict=True)
            ]
            side = int(np.ceil(np.sqrt(len(tiles))))
            sheet = [tiles[start : start + side] for start in range(0, len(tiles), side)]
            shape = " x ".join(map(str, maps.shape[1:]))
            title = f"{stem}: {subject.recipe.backbone.name} {layer}, {shape}, the {count} strongest maps"
            draw_sheet(sheet, folder.path / f"{stem}.{layer}.{config.format}", title, inches=1.5)
            silent = int((maps[place].flatten(1).amax(1) <= 0).sum())
            rows.append([stem, layer, shape, str(int(order[place, 0])), str(silent)])
    folder.save_arrays(NUMBERS, {**arrays, "paths": np.array([str(path) for path in shown.paths])})
    return folder.finish(plan, ["image", "layer", "shape", "strongest", "silent maps"], rows)


def _layers(config: MapsConfig, asked: str) -> list[str]:
    """The names that are meant, each of maps."""
    from featx.extraction.recipe import Recipe

    recipe = Recipe.plan(
        backbone=config.backbone, weights=config.weights, preprocess=config.preprocess, device="cpu", layers=asked
    )
    for layer in recipe.layers:
        shape = recipe.backbone.geometry_of(layer).shape
        if len(shape) != 3:
            raise UsageError(f"{layer.name} of {config.backbone} has the shape {shape}; maps are (C, H, W)")
    return [layer.name for layer in recipe.layers]
