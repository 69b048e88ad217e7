"""`featx show map`."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import FileFormatError, UsageError
from featx.images.sources.reopen import SourceImages
from featx.options.show import MapConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import plural, printable
from featx.status import Status
from featx.store.open import open_features
from featx.store.reader import Features, flat_rows

NUMBERS, TABLE, GRID, PAGE = "map.npz", "map.csv", "grid.jpg", "map.html"
_TSNE_ITERATIONS = 750
_PURE, _TRUSTED = 10, 15  # neighbours of the figures
_SIDES = ((2500, 64), (12_000, 48))  # images -> pixels of a thumbnail; more have 32
_SMALLEST_SIDE, _GRID_PIXELS = 32, 6000


def show_map(
    features: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: MapConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Draw a map of images: those whose features are alike lie side by side.

    Writes map.png, points in the colours of their classes; grid.jpg, the images themselves in the cells of a grid,
    each as near to its place as can be; map.html, a page to zoom into that needs nothing else; map.csv; and map.npz
    with `rows` (n,), `points` (n, 2), `cells` (n, 2: row and column of the grid), `trustworthiness` (of the 15
    nearest) and `purity` (share of the 10 nearest points that have the same class), measured on 2,000 images at most.

    Raises:
        UsageError and its children: no such layer; fewer than four images; umap-learn is not installed.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config = config or MapConfig()
    opened = open_features(features)
    layer = opened.only_layer(config.layer)
    picture = f"map.{config.format}"
    folder = ShownFolder(Path(output), [picture, GRID, PAGE, TABLE, NUMBERS], "featx show map", reporter)
    plan = plan_of(config, show="map", features=opened.digest, layer=layer)
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    from featx.analysis.grid import to_grid
    from featx.figures.map_page import map_page
    from featx.figures.map_picture import draw_map
    from featx.figures.thumbnails import jpeg, sprite, thumbnails

    folder.begin(plan)
    numbers = _numbers(opened, layer, folder, config, reporter)
    rows, points = numbers["rows"], numbers["points"]
    labels, classes = opened.labels[rows], [printable(name) for name in opened.classes]
    trust, pure = float(numbers["trustworthiness"]), float(numbers["purity"])
    how = "t-SNE" if config.method == "tsne" else "UMAP"
    made_by = f"{opened.provenance['backbone']} {layer}"
    title = f"{opened.path.name}: {plural(len(rows), 'image')} by {made_by}, {how}"
    cells = to_grid(points)
    draw_map(points, labels, classes, folder.path / picture, f"{title} (trustworthiness {trust:.3f})")
    side = next((pixels for most, pixels in _SIDES if len(rows) <= most), _SMALLEST_SIDE)
    source = SourceImages(opened.provenance["source"])

    def content(row: int) -> bytes:
        return source.content(opened.raw_paths[row], opened.sha256[row].tobytes())

    reporter.begin("thumbnails", len(rows))
    pictures, missing = thumbnails(rows.tolist(), content, side, reporter.advance)
    reporter.end()
    if missing:
        reporter.note(
            f"note: {plural(len(missing), 'image')} of {len(rows):,} cannot be read any more, or have changed since "
            f"their features were extracted: grey on the page and in the grid, the first {_path(opened, missing[0])}"
        )
    small = max(1, min(side, _GRID_PIXELS // (int(cells.max()) + 1)))
    with replacing(folder.path / GRID) as partial:
        partial.write_bytes(jpeg(sprite(_shrunk(pictures, small), cells), 88))
    summary = f"Neighbours have similar features. Trustworthiness {trust:.3f}" + (
        "" if np.isnan(pure) else f"; {pure:.0%} of the ten nearest points have the same class"
    )
    paths = [_path(opened, row) for row in rows]
    text = map_page(points, pictures, paths, labels, classes, title=title, summary=summary)
    with replacing(folder.path / PAGE) as partial:
        partial.write_text(text, encoding="utf-8")
    with replacing(folder.path / TABLE) as partial:
        partial.write_text(_table(paths, rows, labels, classes, points, cells), encoding="utf-8")
    folder.save_arrays(NUMBERS, {**numbers, "cells": cells})
    share = "" if np.isnan(pure) else f"{pure:.3f}"
    return folder.finish(
        plan, ["layer", "images", "trustworthiness", "purity"], [[layer, str(len(rows)), f"{trust:.3f}", share]]
    )


def _numbers(
    features: Features, layer: str, folder: ShownFolder, config: MapConfig, reporter: Reporter
) -> dict[str, npt.NDArray[Any]]:
    """The points and the figures, computed or there already."""
    if (there := folder.saved_arrays(NUMBERS)) is not None:
        return there
    from featx.analysis.embedding import (
        LEAST,
        MOST_MEASURED,
        principal_components,
        purity,
        trustworthiness,
        tsne,
        umap,
    )

    rows = np.flatnonzero(features.status == Status.DONE)
    if len(rows) < LEAST:
        raise UsageError(f"{features.path} has {plural(len(rows), 'image')}; a map needs {LEAST} or more")
    values = np.asarray(flat_rows(features[layer])[rows], np.float32)
    if not np.isfinite(values).all():
        raise features.damaged_row(layer, int(rows[np.flatnonzero(~np.isfinite(values).all(axis=1))[0]]))
    if config.normalize == "l2":
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        values /= np.where(lengths == 0, 1, lengths)
    if (values == values[0]).all():
        raise FileFormatError(f"{features.path}: {layer} is the same for all images; there is nothing to map")
    reduced = principal_components(values, config.components, config.seed)
    reporter.begin(config.method, _TSNE_ITERATIONS)
    if config.method == "tsne":
        points = tsne(reduced, perplexity=config.perplexity, seed=config.seed, advance=reporter.advance)
    else:
        points = umap(reduced, neighbors=config.neighbors, seed=config.seed)
    reporter.end()
    measured = np.arange(len(rows))
    if len(measured) > MOST_MEASURED:
        measured = np.sort(np.random.default_rng(config.seed).choice(len(rows), MOST_MEASURED, replace=False))
    trusted, pure = (min(k, max(1, (len(rows) - 1) // 2)) for k in (_TRUSTED, _PURE))
    found = {
        "rows": rows,
        "points": points,
        "trustworthiness": np.array(trustworthiness(reduced, points, trusted, measured)),
        "purity": np.array(purity(points, features.labels[rows], pure, measured)),
    }
    folder.save_arrays(NUMBERS, found)
    return found


def _shrunk(pictures: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    if pictures.shape[1] == side:
        return pictures
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BOX)) for one in pictures])


def _path(features: Features, row: int) -> str:
    return printable(features.raw_paths[row])


def _table(
    paths: list[str],
    rows: npt.NDArray[np.intp],
    labels: npt.NDArray[np.int32],
    classes: list[str],
    points: npt.NDArray[np.float64],
    cells: npt.NDArray[np.intp],
) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["row", "path", "class", "x", "y", "grid row", "grid column"])
    for path, row, label, point, cell in zip(paths, rows, labels, points, cells, strict=True):
        name = classes[label] if label >= 0 else ""
        writer.writerow([int(row), path, name, f"{point[0]:.6g}", f"{point[1]:.6g}", *cell.tolist()])
    return out.getvalue()
