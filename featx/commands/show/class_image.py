"""`featx show class-image`."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.figures.sheets import Tile, draw_sheet
from featx.networks.external.code import trust_code
from featx.networks.registry import refuse_unknown
from featx.networks.run_folder import refuse_other_tasks
from featx.networks.weights_file import digest_of_weights
from featx.options.show import ClassImageConfig
from featx.runtime.progress import SILENT, Reporter

if TYPE_CHECKING:
    from featx.explain.subject import Subject

_AT_ONCE = 4  # classes that are searched for together, and saved
_JITTER_SHARE = 16
_COLUMNS = 4


def show_class_image(
    net: str, output: str | os.PathLike[str], config: ClassImageConfig | None = None, *, reporter: Reporter = SILENT
) -> ShowReport:
    """Draw what a network takes for the essence of classes: images with a high score (Simonyan et al. 2014).

    Writes classes.png, and for every four classes images.I.npz with `class`, `pixels` (K, S, S, 3) uint8, `scores`
    (steps + 1, K) and `probability` (K,). Killed and started again, the same call goes on after the last of these.

    Raises:
        UsageError and its children: an unknown network, weights, class or device.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config = config or ClassImageConfig()
    refuse_other_tasks(net)
    trust_code(net)
    refuse_unknown(net)
    if config.target is None:
        raise UsageError(f"name the classes with --target, as --target 0,7 or by their names; {net} has many")
    from featx.explain.class_image import Climb, class_images
    from featx.explain.subject import load_subject

    subject = load_subject(
        net, weights=config.weights, device=config.device, preprocess=config.preprocess, crop=config.crop,
        progress=reporter.download,
    )  # fmt: skip
    classes = _classes(config.target, subject)
    groups = [classes[start : start + _AT_ONCE] for start in range(0, len(classes), _AT_ONCE)]
    picture, names = f"classes.{config.format}", [f"images.{number}.npz" for number in range(1, len(groups) + 1)]
    folder = ShownFolder(Path(output), [picture, *names], "featx show class-image", reporter)
    weights = digest_of_weights(net, config.weights)
    plan = plan_of(
        config, without=("device", "target"), show="class-image", net=net, weights=weights, classes=classes
    )
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    folder.begin(plan)
    jitter = max(1, subject.side // _JITTER_SHARE) if config.jitter is None else config.jitter
    options = {spec.name: getattr(config, spec.name) for spec in fields(Climb) if hasattr(config, spec.name)}
    climb = Climb(**{**options, "jitter": jitter, "turn": not config.no_turn})
    reporter.begin("class images", config.steps * len(groups))
    tiles, rows = [], []
    for group, name in zip(groups, names, strict=True):
        arrays = folder.saved_arrays(name)
        if arrays is None:
            found = class_images(subject, group, climb, reporter.advance)
            arrays = {
                "class": np.array(group), "pixels": found.pixels, "scores": found.scores,
                "probability": found.probability,
            }  # fmt: skip
            folder.save_arrays(name, arrays)
        else:
            reporter.advance(config.steps)
        for place, label in enumerate(group):
            probability, scores = float(arrays["probability"][place]), arrays["scores"][:, place]
            tiles.append(Tile(arrays["pixels"][place], f"{subject.classes[label]} ({probability:.1%})"))
            rows.append([str(subject.classes[label]), f"{scores[0]:.2f}", f"{scores[-1]:.2f}", f"{probability:.1%}"])
    reporter.end()
    sheet = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    penalty = f" less {config.l2:g} |I|²" if config.l2 else ""
    title = f"{net}: images with the highest score{penalty}, by their {config.parameters}, {config.steps} steps"
    draw_sheet(sheet, folder.path / picture, title, inches=3.0)
    return folder.finish(plan, ["class", "score at first", "at last", "probability"], rows)


def _classes(names: str, subject: Subject) -> list[int]:
    """The classes of `--target`; a name may hold commas itself."""
    if names in subject.classes:
        return [subject.class_index(names)]
    return list(dict.fromkeys(subject.class_index(name.strip()) for name in names.split(",")))
