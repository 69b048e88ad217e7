"""`featx show top`."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.explain.images import layer_of_maps
from featx.explain.sources import Pictures, refuse_options_of_images, subject_of_features
from featx.figures.sheets import Tile, draw_sheet, unit_tiles
from featx.options.extraction import ExtractConfig
from featx.options.show import TopConfig
from featx.runtime.files import is_hdf5, replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import printable
from featx.store.open import open_features

if TYPE_CHECKING:
    from featx.explain.subject import Subject
    from featx.explain.units import Strongest
    from featx.networks.layer_names import Layer
    from featx.store.reader import Features

TABLE, ACTIVATIONS = "top.csv", "activations.h5"
_UNITS_ON_SHEET, _UNITS_IN_ROW = 16, 4
_OF_IMAGES = ("backbone", "weights", "preprocess", "resize", "squash", "exif", "follow_links", "max_bad")


@dataclass(frozen=True)
class _Page:
    """Some units of a layer, on one sheet."""

    layer: Layer
    units: npt.NDArray[np.intp]
    number: int
    pages: int

    @property
    def name(self) -> str:
        return f"top.{self.layer.name}" + (f".{self.number + 1}" if self.pages > 1 else "")


def show_top(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: TopConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Draw the images that excite units of a layer most: what the unit sees of them, and what of that excites it.

    Beside the patches stand the projections of the activation through a deconvnet (Zeiler & Fergus 2014, Figure 2),
    scaled each for itself around grey; of a network without ReLUs the gradients of the activations.

    Writes top.LAYER.png and top.LAYER.npz, 16 units each, and top.csv with a line for every unit and image. In the
    .npz: `units` (U,), `rows`, `activations` (U, k), `positions` (U, k, 2), `boxes` (U, k, 4: top, left, height,
    width), `patches` (U, k, h, w, 3) uint8, and `projections` (U, k, h, w, 3) from -1 to 1, to be multiplied by
    `scales` (U, k). The pass over the images is an extraction with --pool max, activations.h5: it resumes.

    Args:
        source: images, or a features file that holds the layers without pooling or with --pool max.

    Raises:
        UsageError and its children: as `extract_features`; units that there are not; images that have changed.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config, folder = config or TopConfig(), Path(output)
    features, names = _features(Path(source), folder, config, reporter)
    from featx.explain.units import chosen_units, largest_activations, strongest, unit_axis

    asked = [
        subject_of_features(features, name, device=config.device, weights_file=config.weights_file, reporter=reporter)
        for name in names
    ]
    pages: list[_Page] = []
    found: dict[str, Strongest] = {}
    for subject in asked:
        layer = subject.recipe.layers[0]
        geometry = subject.recipe.backbone.geometry_of(layer)
        axis = unit_axis(layer.name, geometry.shape, geometry.layout)
        units = chosen_units(config.units, geometry.shape[axis], config.seed)
        parts = [units[start : start + _UNITS_ON_SHEET] for start in range(0, len(units), _UNITS_ON_SHEET)]
        pages += [_Page(layer, part, number, len(parts)) for number, part in enumerate(parts)]
        activations = largest_activations(features, layer.name, axis)
        found |= {page.name: strongest(activations, page.units, config.k) for page in pages if page.layer == layer}
    files = [f"{page.name}.{ending}" for page in pages for ending in (config.format, "npz")]
    shown = ShownFolder(folder, [*files, TABLE], "featx show top", reporter)
    plan = plan_of(config, without=("device", *_OF_IMAGES), show="top", features=features.digest, layers=names)
    if (finished := shown.take_finished(plan)) is not None:
        return finished
    shown.begin(plan)
    by_layer = {subject.recipe.layers[0].name: subject for subject in asked}
    reporter.begin("projections", sum(int((found[page.name].rows >= 0).sum()) for page in pages))
    positions: dict[str, npt.NDArray[np.intp]] = {}
    for page in pages:
        positions[page.name] = _draw_page(
            shown, page, found[page.name], by_layer[page.layer.name], features, config, reporter
        )
    reporter.end()
    with replacing(folder / TABLE) as partial:
        partial.write_text(_table(pages, found, positions, features), encoding="utf-8", errors="surrogateescape")
    rows = []
    for name in names:
        best = np.concatenate([found[page.name].activations for page in pages if page.layer.name == name])
        silent = int(np.isnan(best[:, 0]).sum())
        most = "" if silent == len(best) else f"{np.nanmax(best):.4g}"
        rows.append([name, str(len(best)), str(silent), str(len(features)), most])
    return shown.finish(plan, ["layer", "units", "silent", "images", "strongest"], rows)


def _features(source: Path, folder: Path, config: TopConfig, reporter: Reporter) -> tuple[Features, list[str]]:
    """The features to look at, extracted first if the source is images; and the layers that are meant."""
    if not is_hdf5(source):
        from featx.extraction.job import extract

        if config.weights_file is not None:
            raise UsageError(f"--weights-file is for a features file; {source} is images: name the weights with -w")
        wanted = {name: getattr(config, name) for name in (*_OF_IMAGES, "device")}
        layers = config.layers or layer_of_maps(config, None)
        folder.mkdir(parents=True, exist_ok=True)
        features = extract(
            source, folder / ACTIVATIONS, ExtractConfig(**wanted, layers=layers, pool="max"), reporter=reporter
        )
        return features, list(features)
    refuse_options_of_images(config, _OF_IMAGES, source)
    features = open_features(source)
    names = list(features) if config.layers is None else [name.strip() for name in config.layers.split(",")]
    for name in names:
        features.only_layer(name)
        pooling = features.layers[name].pooling
        if pooling not in ("none", "max"):
            raise UsageError(
                f"{source} holds {name} with --pool {pooling}, from which the largest activation cannot be told; it "
                f"needs none or max"
            )
    return features, names


def _draw_page(
    shown: ShownFolder,
    page: _Page,
    found: Strongest,
    subject: Subject,
    features: Features,
    config: TopConfig,
    reporter: Reporter,
) -> npt.NDArray[np.intp]:
    """Draw a sheet and save its numbers, unless they are there; (U, k, 2) the positions of the activations."""
    from featx.explain.patches import patches_of
    from featx.explain.units import projection_of

    picture, numbers = shown.path / f"{page.name}.{config.format}", shown.path / f"{page.name}.npz"
    count = int((found.rows >= 0).sum())
    if picture.exists() and (there := shown.saved_arrays(numbers.name)) is not None:
        reporter.advance(count)
        return there["positions"]
    pictures = Pictures(features, subject)
    arrays: dict[str, npt.NDArray[Any]] = {
        "units": page.units, "rows": found.rows, "activations": found.activations,
        **patches_of(subject, page.layer, pictures, page.units, found.rows, reporter.advance),
    }  # fmt: skip
    shown.save_arrays(numbers.name, arrays)
    columns = int(np.ceil(np.sqrt(config.k)))
    tiles: list[Tile] = []
    for place, unit in enumerate(page.units):
        there = found.rows[place] >= 0
        best = found.activations[place][there]
        name = f"unit {unit}: {best[0]:.3g} to {best[-1]:.3g}" if len(best) else f"unit {unit}"
        tiles += unit_tiles(name, arrays["patches"][place], arrays["projections"][place], there, columns)
    across = 2 * min(_UNITS_IN_ROW, len(page.units))
    sheet = [tiles[start : start + across] for start in range(0, len(tiles), across)]
    backbone = subject.recipe.backbone.name
    part = f", part {page.number + 1} of {page.pages}" if page.pages > 1 else ""
    title = (
        f"{backbone} {page.layer.name}{part}: the {config.k} images of {len(features):,} that excite each unit most, "
        f"and their projections through {projection_of(subject.network)}"
    )
    draw_sheet(sheet, picture, title)
    return np.asarray(arrays["positions"])


def _table(
    pages: list[_Page], found: dict[str, Strongest], positions: dict[str, npt.NDArray[np.intp]], features: Features
) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["layer", "unit", "rank", "row", "path", "activation", "y", "x"])
    for page in pages:
        one = found[page.name]
        for place, rank in np.argwhere(one.rows >= 0).tolist():
            row = int(one.rows[place, rank])
            y, x = positions[page.name][place, rank].tolist()
            unit, activation = int(page.units[place]), f"{one.activations[place, rank]:.9g}"
            writer.writerow(
                [page.layer.name, unit, rank + 1, row, printable(features.raw_paths[row]), activation, y, x]
            )
    return out.getvalue()
