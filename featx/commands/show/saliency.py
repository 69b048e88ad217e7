"""`featx show saliency`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.explain.images import Shown, has_relus, last_maps, layer_of_maps, subject_for
from featx.figures.sheets import BOTH_SIDES, HEAT, Tile, draw_sheet
from featx.networks.run_folder import refuse_other_tasks
from featx.options.show import SALIENCY_METHODS, SaliencyConfig
from featx.runtime.progress import SILENT, Reporter

NUMBERS = "saliency.npz"
_AT_ONCE = 8  # images that are computed, and kept, together


def show_saliency(
    images: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: SaliencyConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Draw which pixels of some images decide, by several methods side by side.

    Writes NAME.png for every image, and saliency.npz with `METHOD` (N, S, S), `pixels`, `class` and `paths`.

    Raises:
        UsageError and its children: as `featx extract`; an unknown method or class.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config = config or SaliencyConfig()
    refuse_other_tasks(config.backbone)
    methods = _methods(config, reporter)
    shown = Shown(images)
    folder = ShownFolder(
        Path(output), [*(f"{stem}.{config.format}" for stem in shown.stems), NUMBERS], "featx show saliency", reporter
    )
    plan = shown.plan(config, show="saliency")
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    import torch

    from featx.explain.saliency import saliency

    layer = layer_of_maps(config, config.layer) if "gradcam" in methods else None
    subject = subject_for(config, layer, reporter)
    pixels = subject.pixels(shown.contents)
    inputs = subject.normalised(pixels)
    with torch.inference_mode():
        scores = subject.logits(inputs)
    best = scores.argmax(1)
    target = best if config.target is None else torch.full_like(best, subject.class_index(config.target))
    probability = scores.double().softmax(1).gather(1, target[:, None])[:, 0].cpu().numpy()
    reporter.begin("saliency", len(methods) * len(inputs))
    folder.begin(plan)
    maps, missing = {}, []
    for method in methods:
        parts = []
        for start in range(0, len(inputs), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)

            def compute(method: str = method, some: slice = some) -> dict[str, npt.NDArray[Any]]:
                found = saliency(
                    subject, inputs[some], target[some], method, samples=config.samples, noise=config.noise,
                    steps=config.steps, baseline=config.baseline, seed=config.seed,
                )  # fmt: skip
                lacking = found.completeness
                return {
                    "maps": found.maps.float().cpu().numpy(),
                    "missing": np.zeros(0) if lacking is None else lacking.double().cpu().numpy(),
                }

            part = folder.remembered(f"{method}.{start}", compute)
            parts.append(part["maps"])
            missing += part["missing"].tolist()
            reporter.advance(len(part["maps"]))
        maps[method] = np.concatenate(parts)
    reporter.end()
    if missing:
        reporter.note(f"integrated: the parts add up to the score's change but for {max(missing):.2%}")
    rows = []
    for place, stem in enumerate(shown.stems):
        name = subject.classes[int(target[place])]
        tiles = [Tile(pixels[place], "what the network sees")]
        for method in methods:
            colours = BOTH_SIDES if method == "integrated" else HEAT
            tiles.append(Tile(maps[method][place], method, colours, pixels[place] if method == "gradcam" else None))
        title = f"{stem}: {subject.recipe.backbone.name}, class {name} ({probability[place]:.1%})"
        draw_sheet([tiles], folder.path / f"{stem}.{config.format}", title)
        rows.append([stem, name, f"{probability[place]:.1%}", subject.classes[int(best[place])]])
    arrays = {
        **maps,
        "pixels": pixels,
        "class": target.cpu().numpy(),
        "paths": np.array([str(p) for p in shown.paths]),
    }
    folder.save_arrays(NUMBERS, arrays)
    return folder.finish(plan, ["image", "class", "probability", "taken for"], rows)


def _methods(config: SaliencyConfig, reporter: Reporter) -> list[str]:
    """The methods that are asked for; of "all" those that suit the network."""
    if config.method == "all":
        from featx.networks.backbone import Backbone

        backbone = Backbone(config.backbone)
        unsuited = [] if has_relus(backbone) else ["guided", "deconvnet"]
        unsuited += [] if config.layer or last_maps(backbone) else ["gradcam"]
        if unsuited:
            reporter.note(f"left out: {', '.join(unsuited)}, which {config.backbone} has no ReLUs or maps for")
        return [method for method in SALIENCY_METHODS if method not in unsuited]
    found = list(dict.fromkeys(word.strip() for word in config.method.split(",")))
    for method in found:
        if method not in SALIENCY_METHODS:
            raise UsageError(f"--method is {method!r}; it can be {', '.join(SALIENCY_METHODS)}, or all")
    return found
