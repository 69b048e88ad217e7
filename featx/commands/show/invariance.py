"""`featx show invariance`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.explain.images import Shown, first_and_last, subject_for
from featx.figures.curves import Panel, draw_panels
from featx.networks.run_folder import refuse_other_tasks
from featx.options.show import InvarianceConfig
from featx.runtime.progress import SILENT, Reporter

if TYPE_CHECKING:
    from featx.explain.invariance import Curves
    from featx.explain.subject import Subject

NUMBERS = "invariance.npz"
_DRAWN = 5  # transformed images below each curve


def show_invariance(
    images: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: InvarianceConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Draw how features and a class's probability change when images are moved, enlarged and turned.

    As Zeiler & Fergus 2014, Figure 5: distances are divided by the largest one on their curve; the numbers are not.
    Writes invariance.png, with the first image's transformations below the curves, and invariance.npz with
    `KIND places` (P,), `KIND LAYER` (N, P) and `KIND probability` (N, P) for translation, scale and rotation.

    Raises:
        UsageError and its children: as `featx extract`; an unknown class.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config = config or InvarianceConfig()
    refuse_other_tasks(config.backbone)
    shown = Shown(images)
    picture = f"invariance.{config.format}"
    folder = ShownFolder(Path(output), [picture, NUMBERS], "featx show invariance", reporter)
    plan = shown.plan(config, show="invariance")
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    import torch

    from featx.explain.invariance import KINDS, Curves, curves, places_of

    asked = config.layers or first_and_last(config)
    subject = subject_for(config, asked, reporter)
    layers = [layer.name for layer in subject.recipe.layers if layer.name != "logits" or "logits" in asked.split(",")]
    inputs = subject.normalised(subject.pixels(shown.contents))
    with torch.inference_mode():
        best = subject.logits(inputs).argmax(1).tolist()
    targets = best if config.target is None else [subject.class_index(config.target)] * len(best)
    reporter.begin("invariance", len(inputs) * sum(len(places_of(kind, subject.side)) for kind in KINDS))
    folder.begin(plan)
    found: dict[str, list[Curves]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for stem, image, target in zip(shown.stems, inputs, targets, strict=True):

            def compute(kind: str = kind, image: torch.Tensor = image, target: int = target) -> dict[str, Any]:
                return curves(
                    subject, image, target, layers, kind, fill=config.fill, advance=reporter.advance
                ).arrays()

            found[kind].append(Curves.of_arrays(folder.remembered(f"{stem}.{kind}", compute)))
    reporter.end()
    names = [f"{stem} ({subject.classes[target]})" for stem, target in zip(shown.stems, targets, strict=True)]
    _draw(subject, inputs[:1], found, layers, names, folder.path / picture, config)
    arrays: dict[str, npt.NDArray[Any]] = {}
    rows = []
    for kind, of_images in found.items():
        arrays[f"{kind} places"] = of_images[0].places
        arrays[f"{kind} probability"] = np.stack([one.probability for one in of_images])
        for layer in layers:
            arrays[f"{kind} {layer}"] = np.stack([one.distances[layer] for one in of_images])
        for stem, target, one in zip(shown.stems, targets, of_images, strict=True):
            start = int(np.argmin(np.abs(one.places - (1.0 if kind == "scale" else 0.0))))
            least = f"{one.probability.min():.1%}"
            rows.append([stem, subject.classes[target], kind, f"{one.probability[start]:.1%}", least])
    arrays["class"] = np.array(targets)
    arrays["paths"] = np.array([str(path) for path in shown.paths])
    folder.save_arrays(NUMBERS, arrays)
    return folder.finish(plan, ["image", "class", "changed by", "probability", "least"], rows)


def _draw(
    subject: Subject,
    image: Any,
    found: dict[str, list[Curves]],
    layers: list[str],
    names: list[str],
    picture: Path,
    config: InvarianceConfig,
) -> None:
    from featx.explain.invariance import UNITS, transformed

    mean, std = (np.array(subject.recipe.preprocess.values()[name]) for name in ("mean", "std"))
    columns = []
    for kind, of_images in found.items():
        places = of_images[0].places
        panels = [
            Panel(f"{layer}: distance / largest", [one.distances[layer] / (one.distances[layer].max() or 1)
                                                   for one in of_images])
            for layer in layers
        ]  # fmt: skip
        panels.append(Panel("probability of the class", [one.probability for one in of_images]))
        strip = []
        for place in places[np.linspace(0, len(places) - 1, _DRAWN).round().astype(int)]:
            moved = transformed(image, kind, float(place), config.fill)[0].cpu().numpy().transpose(1, 2, 0)
            strip.append(np.rint(255 * np.clip(moved * std + mean, 0, 1)).astype(np.uint8))
        columns.append((f"{kind} ({UNITS[kind]})", places, panels, strip))
    outside = "the image's edge" if config.fill == "edge" else "the mean colour"
    title = f"{subject.recipe.backbone.name}: what changes with the image; from outside comes {outside}"
    draw_panels(columns, names, picture, title)
