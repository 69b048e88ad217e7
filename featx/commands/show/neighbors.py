"""`featx show neighbors`."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError, WeightsMismatch
from featx.explain.images import Shown
from featx.heads.splits import copies_of
from featx.images.bad_image import BadImage
from featx.images.sources.reopen import SourceImages
from featx.images.sources.scan import scan
from featx.options.show import NeighborsConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import printable
from featx.status import Status
from featx.store.open import open_features
from featx.store.reader import Features

if TYPE_CHECKING:
    from featx.analysis.nearest import Space

TABLE, ACCURACY = "neighbors.csv", "accuracy.csv"
_MOST_MEASURED = 5000  # images whose class is voted for
_SIDE = 128  # pixels of a picture


@dataclass(frozen=True)
class _Query:
    """An image to find the neighbours of.

    Attributes:
        row: of the file; None for another image.
        values: layer -> (...) of that other image.
    """

    stem: str
    title: str
    content: bytes
    row: int | None
    values: dict[str, npt.NDArray[Any]]


def show_neighbors(
    features: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: NeighborsConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Draw the images that lie nearest to some images, by layer: what each layer takes for alike.

    Writes NAME.png for every query, a row for each layer; neighbors.csv; and accuracy.csv: how often the class that
    most of an image's k nearest have is its own, by layer (leave one out, on 5,000 images at most). Neither the query
    nor copies of it, files of the same bytes, count as neighbours.

    Args:
        features: a features file. A query that is an image goes through the network that made it.

    Raises:
        UsageError and its children: no such layer or row, an image that cannot be used.
        WeightsMismatch: the network has other weights now.
        PlanMismatch: the folder holds pictures made with other settings.
    """
    config = config or NeighborsConfig()
    opened = open_features(features)
    layers = list(opened) if config.layers is None else [name.strip() for name in config.layers.split(",")]
    for layer in layers:
        opened.only_layer(layer)
    rows = _rows(config, opened)
    shown = None if rows is not None else Shown(_images(config.query))
    stems = [f"row-{row}" for row in rows] if rows is not None else shown.stems if shown else []
    pictures = [f"{stem}.{config.format}" for stem in stems]
    folder = ShownFolder(Path(output), [*pictures, TABLE, ACCURACY], "featx show neighbors", reporter)
    digests = [] if shown is None else [hashlib.sha256(content).hexdigest() for content in shown.contents]
    plan = plan_of(
        config, without=("device", "query"), show="neighbors", features=opened.digest, layers=layers,
        queries=digests if rows is None else rows,
    )  # fmt: skip
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    spaces = {layer: _space(opened, layer, config.metric) for layer in layers}
    queries = (
        _queries_of_rows(opened, rows) if rows is not None else _queries_of_images(opened, shown, layers, config)
    )
    measured = _accuracies(opened, spaces, config, reporter)
    folder.begin(plan)
    lines: list[list[str]] = []
    for query, picture in zip(queries, pictures, strict=True):
        lines += _draw(opened, spaces, query, folder.path / picture, config)
    _write_csv(folder.path / TABLE, ["query", "layer", "rank", "row", "path", "class", "distance"], lines)
    table = [[layer, *(f"{value:.4f}" for value in measured.get(layer, ()))] for layer in layers]
    columns = ["layer", "1 nearest", f"{config.k} nearest"]
    table = [[*row, *[""] * (len(columns) - len(row))] for row in table]
    _write_csv(folder.path / ACCURACY, columns, table)
    return folder.finish(plan, columns, table)


def _rows(config: NeighborsConfig, features: Features) -> list[int] | None:
    """The rows that a query names; None if it is a path."""
    if drawn := re.fullmatch(r"random:(\d{1,3})", config.query):
        done = np.flatnonzero(features.status == Status.DONE)
        chosen = np.random.default_rng(config.seed).permutation(done)[: int(drawn[1])]
        return sorted(chosen.tolist())
    if not re.fullmatch(r"\d{1,12}(\s*,\s*\d{1,12})*", config.query) or Path(config.query).exists():
        return None
    rows = [int(word) for word in config.query.split(",")]
    for row in rows:
        if row >= len(features) or features.status[row] != Status.DONE:
            why = "failed" if row < len(features) else f"is none of its {len(features)}"
            raise UsageError(f"--query {row}: this row of {features.path} {why}")
    return list(dict.fromkeys(rows))


def _images(query: str) -> list[Path]:
    """The image, or those of a folder."""
    path = Path(query)
    if not path.exists():
        raise UsageError(f"--query {printable(query)}: no such image, and not rows as 12,99 or random:4")
    return [path / os.fsdecode(name) for name in scan(path).paths] if path.is_dir() else [path]


def _space(features: Features, layer: str, metric: str) -> Space:
    from featx.analysis.nearest import Space, mean_row

    if metric == "centred":
        done = np.flatnonzero(features.status == Status.DONE)
        return Space(features[layer], "cosine", mean_row(features[layer], done))
    return Space(features[layer], metric)


def _queries_of_rows(features: Features, rows: list[int]) -> list[_Query]:
    source = SourceImages(features.provenance["source"])
    found = []
    for row in rows:
        try:
            content = source.content(features.raw_paths[row], features.sha256[row].tobytes())
        except BadImage:
            content = b""
        found.append(_Query(f"row-{row}", _caption(features, row), content, row, {}))
    return found


def _queries_of_images(
    features: Features, shown: Shown | None, layers: list[str], config: NeighborsConfig
) -> list[_Query]:
    from featx.extraction.engine import Engine
    from featx.extraction.in_memory.threads import InMemory
    from featx.extraction.recipe import Recipe, describe_layer
    from featx.extraction.reduction.projection import reduction_of

    if shown is None:
        return []
    provenance = features.provenance
    described = describe_layer(provenance, layers[0], provenance["pooling"])
    recipe = Recipe.from_dict(
        described, layer=",".join(layers), weights=config.weights_file, device=config.device, batch_size=None,
        decode="cpu", whole=True,
    )  # fmt: skip
    reduction = reduction_of(features)
    engine = Engine(replace(recipe, reduction=reduction))
    if engine.weights_sha256 != provenance["weights"]["sha256"]:
        raise WeightsMismatch(
            f"{features.path} was made with other weights than {recipe.weights.name} holds now; say where they are "
            f"with --weights-file"
        )
    network = InMemory(engine)
    try:
        values = network(shown.contents, on_error="raise")
    finally:
        network.close()
    return [
        _Query(stem, stem, content, None, {layer: values[layer][place] for layer in layers})
        for place, (stem, content) in enumerate(zip(shown.stems, shown.contents, strict=True))
    ]


def _accuracies(
    features: Features, spaces: dict[str, Space], config: NeighborsConfig, reporter: Reporter
) -> dict[str, tuple[float, float]]:
    """layer -> accuracy of the nearest image, and of the vote of k; empty if the images have no classes."""
    rows = features.usable()
    if len(np.unique(features.labels[rows])) < 2:
        return {}
    if len(rows) > _MOST_MEASURED:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, _MOST_MEASURED, replace=False))
    copies = copies_of(features.sha256)
    labels = np.where(features.status == Status.DONE, features.labels, -1).astype(np.int32)
    reporter.begin("nearest images", len(rows) * len(spaces))
    found = {}
    for layer, space in spaces.items():
        votes = space.votes(rows, copies, labels, (1, config.k), reporter.advance)
        found[layer] = (float((votes[0] == labels[rows]).mean()), float((votes[1] == labels[rows]).mean()))
    reporter.end()
    return found


def _draw(
    features: Features, spaces: dict[str, Space], query: _Query, picture: Path, config: NeighborsConfig
) -> list[list[str]]:
    """Draw one query's sheet; its lines of the table."""
    from featx.figures.sheets import Tile, draw_sheet
    from featx.figures.thumbnails import MISSING, thumbnail

    source = SourceImages(features.provenance["source"])
    blank = np.full((_SIDE, _SIDE, 3), MISSING, np.uint8)
    own = hashlib.sha256(query.content).digest() if query.row is None else features.sha256[query.row].tobytes()
    copies = {int(row) for row in np.flatnonzero((features.sha256 == np.frombuffer(own, np.uint8)).all(axis=1))}
    if not any(own):  # a file that keeps no hashes: copies are not known
        copies = {query.row} if query.row is not None else set()
    sheet, lines = [], []
    for layer, space in spaces.items():
        values = query.values[layer] if query.row is None else space.rows[query.row]
        rows, distances = space.nearest(values, config.k + len(copies))
        kept = [(int(row), float(far)) for row, far in zip(rows, distances, strict=True) if int(row) not in copies]
        tiles = [Tile(thumbnail(query.content, _SIDE) if query.content else blank, f"{layer}\n{query.title}")]
        for rank, (row, far) in enumerate(kept[: config.k], 1):
            try:
                seen = thumbnail(source.content(features.raw_paths[row], features.sha256[row].tobytes()), _SIDE)
            except BadImage:
                seen = blank
            tiles.append(Tile(seen, f"{_caption(features, row)}\n{far:.3g}"))
            label = int(features.labels[row])
            name = printable(features.classes[label]) if label >= 0 else ""
            path = printable(features.raw_paths[row])
            lines.append([query.stem, layer, str(rank), str(row), path, name, f"{far:.9g}"])
        sheet.append(tiles)
    title = (
        f"{features.path.name}, {features.provenance['backbone']}: nearest to {query.stem} ({query.title}) among "
        f"{features.count(Status.DONE):,} images, {config.metric} distance"
    )
    draw_sheet(sheet, picture, title, inches=1.5)
    return lines


def _caption(features: Features, row: int) -> str:
    label = int(features.labels[row])
    return printable(features.classes[label] if label >= 0 else Path(features.paths[row]).stem)[:22]


def _write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
