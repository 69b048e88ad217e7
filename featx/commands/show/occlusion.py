"""`featx show occlusion`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.explain.images import Shown, layer_of_maps, subject_for
from featx.figures.sheets import Tile, draw_sheet
from featx.networks.run_folder import refuse_other_tasks
from featx.options.show import OcclusionConfig
from featx.runtime.progress import SILENT, Reporter

NUMBERS = "occlusion.npz"
_PARTS, _STEPS = 4, 3  # the square is a quarter of the side, and moves by a third of itself


def show_occlusion(
    images: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: OcclusionConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Draw what a network makes of images while a grey square moves over them (Zeiler & Fergus 2014, Figure 7).

    Writes NAME.png for every image, and occlusion.npz with `probability`, `log_odds`, `predicted` and `activation`
    (N, R, R), and the positions (R,).

    Raises:
        UsageError and its children: as `featx extract`; an unknown class, a square larger than the image.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config = config or OcclusionConfig()
    refuse_other_tasks(config.backbone)
    shown = Shown(images)
    folder = ShownFolder(
        Path(output),
        [*(f"{stem}.{config.format}" for stem in shown.stems), NUMBERS],
        "featx show occlusion",
        reporter,
    )
    plan = shown.plan(config, show="occlusion")
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    import torch

    from featx.explain.occlusion import Occlusion, occlude, positions

    layer = layer_of_maps(config, config.layer)
    subject = subject_for(config, layer, reporter)
    square = config.square or max(1, subject.side // _PARTS)
    if square >= subject.side:
        raise UsageError(f"--square {square} covers the whole image, which has {subject.side} pixels")
    stride = config.stride or max(1, square // _STEPS)
    pixels = subject.pixels(shown.contents)
    inputs = subject.normalised(pixels)
    with torch.inference_mode():
        best = subject.logits(inputs).argmax(1).tolist()
    targets = best if config.target is None else [subject.class_index(config.target)] * len(best)
    reporter.begin("occlusion", len(inputs) * len(positions(subject.side, square, stride)) ** 2)
    folder.begin(plan)
    found = []
    for stem, image, target in zip(shown.stems, inputs, targets, strict=True):

        def compute(image: torch.Tensor = image, target: int = target) -> dict[str, np.ndarray]:
            one = occlude(subject, image, target, layer, square=square, stride=stride, advance=reporter.advance)
            return one.arrays()

        found.append(Occlusion.of_arrays(folder.remembered(stem, compute)))
    reporter.end()
    rows = []
    for stem, image, one, target in zip(shown.stems, pixels, found, targets, strict=True):
        name = subject.classes[target]
        taken = one.predicted.numpy()
        kinds = np.unique(taken)
        tiles = [
            Tile(image, f"a square of {square} pixels"),
            Tile(one.activation.numpy(), f"{layer}, map {one.unit}", bar=True),
            Tile(one.probability.numpy(), f"probability of {name}", bar=True),
            Tile(one.log_odds.numpy(), "its log-odds", bar=True),
            Tile(np.searchsorted(kinds, taken).astype(float), _kinds(subject.classes, taken), "tab10"),
        ]
        title = f"{stem}: {subject.recipe.backbone.name}, class {name}"
        draw_sheet([tiles], folder.path / f"{stem}.{config.format}", title, inches=2.8)
        least = float(one.probability.min())
        rows.append(
            [
                stem,
                name,
                f"{one.whole[0]:.1%}",
                f"{least:.1%}",
                f"{one.whole[1]:.1f}",
                f"{float(one.log_odds.min()):.1f}",
            ]
        )
    arrays = {
        name: np.stack([getattr(one, name).numpy() for one in found])
        for name in ("probability", "log_odds", "predicted", "activation")
    }
    arrays |= {"positions": np.array(found[0].tops), "class": np.array(targets), "pixels": pixels}
    arrays["paths"] = np.array([str(path) for path in shown.paths])
    folder.save_arrays(NUMBERS, arrays)
    columns = ["image", "class", "probability", "least", "log-odds", "least"]
    return folder.finish(plan, columns, rows)


def _kinds(classes: Sequence[str], taken: np.ndarray) -> str:
    """The classes an image is taken for, most often first."""
    kinds, counts = np.unique(taken, return_counts=True)
    names = [str(classes[kind])[:24] for kind in kinds[np.argsort(-counts, kind="stable")]]
    more = f"\nand {len(names) - 2} more" if len(names) > 2 else ""
    return "taken for " + ",\n".join(names[:2]) + more
