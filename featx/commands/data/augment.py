"""`featx show augment`: what an augmentation makes of images."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.figures.sheets import Tile, draw_sheet
from featx.images.sources.scan import scan
from featx.options.show import AugmentConfig
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import printable


def show_augmentation(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: AugmentConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Draw a sheet: a row for each image, as the network sees it and as a training may see it.

    The code is that of `finetune_network`, with the same preprocessing; mixup and CutMix mix the images of the sheet.

    Args:
        source: an image, or what `finetune_network` takes; of many images some are drawn at random.

    Raises:
        UsageError and its children: an unknown augmentation, images that cannot be used.
        PlanMismatch: the folder holds something else.
    """
    import torch

    from featx.images.preprocess import Preprocess
    from featx.networks.backbone import Backbone
    from featx.training.data.augment import Augmentation, parse_augmentation
    from featx.training.data.inputs import ImageInputs
    from featx.training.data.pixels import Pixels

    config = config or AugmentConfig()
    how = parse_augmentation(config.augment)
    if how.is_none:
        raise UsageError("--augment none changes nothing; there is nothing to show")
    manifest = scan(source)
    picture = f"augment.{config.format}"
    folder = ShownFolder(Path(output), [picture], "featx show augment", reporter)
    plan = plan_of(config, show="augment", images=manifest.digest)
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    rows = np.arange(len(manifest))
    if len(rows) > config.images:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, config.images, replace=False))
    preprocess = Preprocess.from_values(dict(Backbone(config.backbone).preprocessing))
    plain = replace(preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    wider = plain if how.only_mirrors or plain.fit != "crop" else replace(plain, crop=plain.resize)
    cpu, nothing = torch.device("cpu"), Augmentation()

    def load(given: Preprocess) -> Pixels:
        return Pixels(manifest, given, rows, exif=True, memory_bytes=1 << 30, device=cpu, workers=1, reporter=SILENT)

    exact, large = load(plain), load(wider)
    try:
        if exact.bad:
            row = min(exact.bad)
            raise UsageError(f"{manifest.name(row)}: {exact.bad[row]}")
        places = np.arange(len(rows))
        columns = [ImageInputs(exact, plain, nothing, plain.crop, cpu).take(places, slice(None), None)]
        inputs = ImageInputs(large, plain, how, wider.crop, cpu)
        generator = torch.Generator().manual_seed(config.seed)
        for _ in range(config.draws):
            columns.append(inputs.take(places, slice(None), inputs.draw(len(rows), generator)))
    finally:
        exact.close()
        large.close()
    folder.begin(plan)
    images = [(255 * one.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy() for one in columns]
    sheet = [
        [Tile(column[place], _short(printable(manifest.name(int(row)))) if not number else "")
         for number, column in enumerate(images)]
        for place, row in enumerate(rows)
    ]  # fmt: skip
    draw_sheet(sheet, folder.path / picture, f"--augment {config.augment}", inches=1.6)
    return folder.finish(plan, ["images", "draws of each"], [[str(len(rows)), str(config.draws)]])


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
