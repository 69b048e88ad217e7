"""`featx show correspondence`."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.explain.correspondence import (
    CONTROL,
    Box,
    hidden,
    mean_colour,
    parts_of,
    random_box,
    read_parts,
    seen_of,
    sign_distances,
)
from featx.explain.images import Shown, layer_of_maps, subject_for
from featx.figures.bars import draw_bars
from featx.figures.sheets import Tile, draw_sheet
from featx.images.bad_image import BadImage
from featx.images.decode import decode
from featx.networks.weights_file import digest_of_weights
from featx.options.show import CorrespondenceConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import printable

if TYPE_CHECKING:
    from PIL import Image

    from featx.explain.subject import Subject

TABLE, NUMBERS = "correspondence.csv", "correspondence.npz"
_AT_ONCE = 32
Distances = npt.NDArray[np.float64]


def show_correspondence(
    parts: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: CorrespondenceConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Measure whether hiding the same part of different images changes features alike.

    As Zeiler & Fergus 2014, Table 1. Lower is more consistent; "random" is the control, boxes of the parts' sizes
    anywhere. Writes correspondence.csv: part, layer, mean, deviation over the pairs of images, and for random boxes
    that of the sets' means; correspondence.png; parts.png with what was hidden; and correspondence.npz with
    `LAYER PART` (pairs,), and `LAYER random` (repeats, pairs).

    Args:
        parts: a CSV file with the columns path, part, left, top, width, height; paths relative to it, boxes in pixels
            of the image.

    Raises:
        UsageError and its children: as `featx extract`; a box outside of what the network sees.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config, source = config or CorrespondenceConfig(), Path(parts)
    boxes = read_parts(source)
    shown = Shown([source.parent / path for path in boxes])
    picture, sheet = f"correspondence.{config.format}", f"parts.{config.format}"
    folder = ShownFolder(Path(output), [picture, sheet, TABLE, NUMBERS], "featx show correspondence", reporter)
    plan = plan_of(
        config, without=("device",), show="correspondence", parts=hashlib.sha256(source.read_bytes()).hexdigest(),
        images=[hashlib.sha256(content).hexdigest() for content in shown.contents],
        weights=digest_of_weights(config.backbone, config.weights),
    )  # fmt: skip
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    from featx.extraction.recipe import default_layer

    asked = config.layers or f"{layer_of_maps(config, None)},{default_layer(config.backbone)}"
    subject = subject_for(config, asked, reporter)
    layers = [layer.name for layer in subject.recipe.layers if layer.name != "logits" or "logits" in asked.split(",")]
    images = _decoded(shown, config)
    seen = [seen_of(image.size, subject.recipe.preprocess) for image in images]
    names = parts_of(boxes)
    _refuse_unseen(boxes, seen)
    colour = mean_colour(subject.recipe.preprocess)
    reporter.begin("correspondence", len(images) * (1 + len(names) + config.repeats))
    folder.begin(plan)
    whole = _features(subject, images, layers, reporter)

    def compared(key: str, covered: list[Image.Image]) -> Mapping[str, Distances]:
        """layer -> (pairs,), computed or there already."""

        def compute() -> dict[str, Distances]:
            values = _features(subject, covered, layers, reporter)
            return {layer: sign_distances(whole[layer] - values[layer]) for layer in layers}

        return folder.remembered(key, compute)

    found: dict[tuple[str, str], Distances] = {}
    masked: list[list[Image.Image]] = []
    for number, name in enumerate(names):
        masked.append([hidden(image, of[name], colour) for image, of in zip(images, boxes.values(), strict=True)])
        found |= {(layer, name): values for layer, values in compared(f"part-{number}", masked[-1]).items()}
    generator = np.random.default_rng(config.seed)
    drawn: dict[str, list[Distances]] = {layer: [] for layer in layers}
    for repeat in range(config.repeats):
        size = names[repeat % len(names)]
        covered = [
            hidden(image, random_box(of[size], around, generator), colour)
            for image, of, around in zip(images, boxes.values(), seen, strict=True)
        ]
        if repeat == 0:
            masked.append(covered)
        for layer, values in compared(f"random-{repeat}", covered).items():
            drawn[layer].append(values)
    reporter.end()
    found |= {(layer, CONTROL): np.stack(sets) for layer, sets in drawn.items()}
    rows = [
        [name, layer, f"{found[layer, name].mean():.4f}", f"{found[layer, name].std():.4f}",
         f"{found[layer, name].mean(axis=1).std():.4f}" if name == CONTROL else ""]
        for name in [*names, CONTROL] for layer in layers
    ]  # fmt: skip
    columns = ["part", "layer", "difference", "deviation", "between sets"]
    with replacing(folder.path / TABLE) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    backbone = subject.recipe.backbone.name
    title = f"{backbone}, {len(images)} images: how differently features change when a part is hidden"
    draw_bars(
        {layer: [float(found[layer, name].mean()) for name in [*names, CONTROL]] for layer in layers},
        {layer: [float(found[layer, name].std()) for name in [*names, CONTROL]] for layer in layers},
        [*names, CONTROL], "share of values whose change has another sign", folder.path / picture, title,
    )  # fmt: skip
    tiles = [
        [Tile(subject.pixels([one])[0], printable(name) if not place else "") for place, one in enumerate(of)]
        for name, of in zip([*names, CONTROL], masked, strict=True)
    ]
    draw_sheet(tiles, folder.path / sheet, f"{backbone}: what was hidden, of random boxes the first set", inches=1.6)
    folder.save_arrays(NUMBERS, {f"{layer} {name}": values for (layer, name), values in found.items()})
    return folder.finish(plan, columns, rows)


def _decoded(shown: Shown, config: CorrespondenceConfig) -> list[Image.Image]:
    found = []
    for path, content in zip(shown.paths, shown.contents, strict=True):
        try:
            found.append(decode(content, exif=config.exif)[0])
        except BadImage as bad:
            raise UsageError(f"{printable(str(path))} cannot be used: {bad}") from None
    return found


def _refuse_unseen(boxes: dict[str, dict[str, Box]], seen: list[Box]) -> None:
    """Raise UsageError if a box hides nothing that the network is given."""
    for (path, parts), around in zip(boxes.items(), seen, strict=True):
        for name, box in parts.items():
            right = min(box.left + box.width, around.left + around.width) - max(box.left, around.left)
            down = min(box.top + box.height, around.top + around.height) - max(box.top, around.top)
            if right < 1 or down < 1:
                raise UsageError(
                    f"{printable(name)} of {printable(path)} lies outside of what the network is given of the image, "
                    f"{around.width:.0f} x {around.height:.0f} pixels from {around.left:.0f}, {around.top:.0f}; "
                    f"--squash gives it the whole"
                )


def _features(
    subject: Subject, images: list[Image.Image], layers: list[str], reporter: Reporter
) -> dict[str, npt.NDArray[Any]]:
    """layer -> (N, ...) float32."""
    import torch

    parts: dict[str, list[npt.NDArray[Any]]] = {layer: [] for layer in layers}
    with torch.inference_mode():
        for start in range(0, len(images), _AT_ONCE):
            some = images[start : start + _AT_ONCE]
            outputs = subject.network(subject.normalised(subject.pixels(some)))
            for layer in layers:
                parts[layer].append(outputs[layer].float().cpu().numpy())
            reporter.advance(len(some))
    return {layer: np.concatenate(values) for layer, values in parts.items()}
