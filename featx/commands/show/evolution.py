"""`featx show evolution`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import FileFormatError, SourceError, UsageError
from featx.explain.images import layer_of_maps
from featx.explain.sources import Pictures, subject_of_features
from featx.figures.sheets import Tile, around_grey, draw_sheet, mosaic
from featx.images.sources.scan import scan
from featx.networks.run_folder import Run, is_run, read_run, snapshots_of
from featx.options.extraction import ExtractConfig
from featx.options.show import EvolutionConfig, ShowConfig
from featx.runtime.progress import SILENT, OnlyProgress, Reporter
from featx.runtime.text import printable

if TYPE_CHECKING:
    from featx.store.reader import Features

NUMBERS = "evolution.npz"
_MOST_UNITS = 24


@dataclass(frozen=True)
class _Moment:
    """What the units do at the end of one epoch: `arrays` as of `patches_of`, with one image each."""

    epoch: int
    features: Features
    rows: npt.NDArray[np.intp]
    activations: npt.NDArray[np.float32]
    arrays: dict[str, npt.NDArray[Any]]


def show_evolution(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: EvolutionConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Draw how units came to be what they are: their strongest activation at the snapshots of a training.

    As Zeiler & Fergus 2014, Figure 4: for every snapshot of `featx finetune --snapshots` the image that excites a
    unit most, and the projection of that activation through a deconvnet. A sudden jump is another image. Writes
    evolution.png, and evolution.npz with `epochs` (E,), `units` (U,), `rows` and `activations` (E, U), `positions`
    (E, U, 2), `patches` (E, U, h, w, 3) and `projections`, as of `show_top`. The pass over the images for each
    snapshot is an extraction, epoch-E.h5: it resumes.

    Args:
        run: the folder of a run.

    Raises:
        FileFormatError: it is no run, or has no snapshots.
        UsageError and its children: as `show_top`.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config = config or EvolutionConfig()
    if not is_run(str(run)):
        raise FileFormatError(f"{run} is not the folder of a run of featx finetune")
    described = read_run(run)
    snapshots = snapshots_of(described.folder)
    if not snapshots:
        raise FileFormatError(f"{run} has no snapshots; featx finetune --snapshots 1,2,5,10 keeps them")
    source = _source(described, config)
    layer = config.layer or layer_of_maps(ShowConfig(backbone=str(run)), None)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    every = {
        epoch: _features(run, path, layer, source, folder / f"epoch-{epoch}.h5", config, reporter)
        for epoch, path in snapshots.items()
    }
    picture = f"evolution.{config.format}"
    shown = ShownFolder(folder, [picture, NUMBERS], "featx show evolution", reporter)
    digests = {str(epoch): features.digest for epoch, features in every.items()}
    plan = plan_of(config, without=("device", "images"), show="evolution", features=digests, layer=layer)
    if (finished := shown.take_finished(plan)) is not None:
        return finished
    units, moments = _moments(every, layer, config, reporter)
    shown.begin(plan)
    sheet = [[_tile(moment, place, int(unit)) for moment in moments] for place, unit in enumerate(units)]
    names = f"{described.backbone} {layer}"
    title = f"{names}, {printable(str(run))}: the strongest activation among {len(moments[0].features):,} images"
    draw_sheet(sheet, folder / picture, title, inches=2.6, flat=True)
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.stack([moment.arrays[name][:, 0] for moment in moments]) for name in moments[0].arrays
    }
    arrays |= {
        "epochs": np.array([moment.epoch for moment in moments]),
        "units": units,
        "rows": np.stack([moment.rows for moment in moments]),
        "activations": np.stack([moment.activations for moment in moments]),
    }
    shown.save_arrays(NUMBERS, arrays)
    lines = []
    for before, moment in zip([None, *moments], moments, strict=False):
        changed = "" if before is None else str(int((before.rows != moment.rows).sum()))
        silent = str(int((moment.rows < 0).sum()))
        lines.append([str(moment.epoch), layer, str(len(units)), silent, changed])
    return shown.finish(plan, ["epoch", "layer", "units", "silent", "other image"], lines)


def _tile(moment: _Moment, place: int, unit: int) -> Tile:
    """The projection and beside it the patch."""
    patch, title = moment.arrays["patches"][place, 0], f"unit {unit}, epoch {moment.epoch}"
    if moment.rows[place] < 0:
        return Tile(mosaic([np.full_like(patch, 255)] * 2, 2), f"{title}: silent")
    return Tile(mosaic([around_grey(moment.arrays["projections"][place, 0]), patch], 2), title)


def _source(run: Run, config: EvolutionConfig) -> Path:
    if config.images:
        return Path(config.images)
    source = str(run.plan.get("source", ""))
    try:
        same = bool(source) and scan(source).digest == run.plan.get("images")
    except SourceError:
        same = False
    if not same:  # of standard input only the folder is known, and other images may have come to a source
        raise UsageError(
            f"{printable(source)}, the images of {run.folder}'s training, are not there as they were; name some with "
            f"--images"
        )
    return Path(source)


def _features(
    run: str | os.PathLike[str],
    snapshot: Path,
    layer: str,
    source: Path,
    output: Path,
    config: EvolutionConfig,
    reporter: Reporter,
) -> Features:
    from featx.extraction.job import extract

    wanted = ExtractConfig(
        backbone=str(run), weights=str(snapshot), layers=layer, pool="max", device=config.device,
        follow_links=config.follow_links, max_bad=config.max_bad, exif=_exif(run),
    )  # fmt: skip
    return extract(source, output, wanted, reporter=OnlyProgress(reporter))


def _exif(run: str | os.PathLike[str]) -> bool:
    request = read_run(run).plan.get("request", {})
    return bool(request.get("exif", False))


def _moments(
    every: dict[int, Features], layer: str, config: EvolutionConfig, reporter: Reporter
) -> tuple[npt.NDArray[np.intp], list[_Moment]]:
    from featx.explain.patches import patches_of
    from featx.explain.units import chosen_units, largest_activations, strongest, unit_axis

    units: npt.NDArray[np.intp] = np.zeros(0, np.intp)
    found = []
    for epoch, features in every.items():
        subject = subject_of_features(features, layer, device=config.device, weights_file=None, reporter=reporter)
        one = subject.recipe.layers[0]
        geometry = subject.recipe.backbone.geometry_of(one)
        axis = unit_axis(layer, geometry.shape, geometry.layout)
        if not len(units):
            units = chosen_units(config.units, geometry.shape[axis], config.seed)
            if len(units) > _MOST_UNITS:
                raise UsageError(f"--units: {len(units)} units were chosen; a sheet has room for {_MOST_UNITS}")
            reporter.begin("projections", len(units) * len(every))
        best = strongest(largest_activations(features, layer, axis), units, 1)
        arrays = patches_of(subject, one, Pictures(features, subject), units, best.rows, reporter.advance)
        found.append(_Moment(epoch, features, best.rows[:, 0], best.activations[:, 0], arrays))
    reporter.end()
    return units, found
