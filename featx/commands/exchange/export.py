"""`featx export`: features as NumPy, MATLAB, CSV, Parquet or embedding projector files."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featx.errors import LabelError, UsageError
from featx.figures.thumbnails import sprite, thumbnails
from featx.images.sources.reopen import SourceImages
from featx.options.exchange import ExportConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.text import format_bytes, plural
from featx.status import Status
from featx.store.formats import WRITERS, Selection, write_metadata
from featx.store.open import open_features

_SPRITE_SIDE, _MOST_SPRITE = 8192, 32  # pixels: what the projector takes, and of one image at most
_LEAST_SPRITE = 8


@dataclass(frozen=True)
class ExportReport(Report):
    """What was written.

    Attributes:
        files: the output, and what belongs to it.
    """

    files: list[Path]
    layers: list[str]
    images: int
    bytes: int

    def lines(self) -> list[str]:
        names = ", ".join(map(str, self.files))
        return [f"{names}: {plural(self.images, 'image')}, {', '.join(self.layers)}, {format_bytes(self.bytes)}"]


def export_features(
    features: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: ExportConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ExportReport:
    """Write features in a format of other programs; the name's ending says which.

    .npz and .mat hold the layers and what is known of the images; .csv and .parquet are tables with a row for each
    image; .npy is one array, with its rows' names in NAME.rows.csv; .tsv are vectors for the embedding projector,
    with NAME.metadata.tsv and a sheet of small images, NAME.sprite.png.

    Args:
        features: a features file.

    Raises:
        UsageError and its children: another ending, an unknown layer, several layers where one is held; it is there.
        DiskError: it does not fit, or the disk failed.
    """
    config, output = config or ExportConfig(), Path(output)
    ending = output.suffix.lower()
    if ending not in WRITERS:
        raise UsageError(f"-o {output.name}: the ending says the format; it can be {', '.join(WRITERS)}")
    chosen = _selection(Path(features), config, without_failed=ending == ".tsv")
    beside: dict[Path, Callable[[Selection, Path], None]] = {}
    if ending == ".npy":
        beside[output.with_suffix(".rows.csv")] = _write_rows
    if ending == ".tsv":
        beside[output.with_suffix(".metadata.tsv")] = write_metadata
    there = next((path for path in (output, *beside) if path.exists()), None)
    if there is not None and not config.overwrite:
        raise UsageError(f"{there} is there already; --overwrite replaces it, or choose another name with -o")
    reporter.begin("export", 1 + len(beside))
    for path, write in {output: WRITERS[ending], **beside}.items():
        with replacing(path) as partial:
            write(chosen, partial)
        reporter.advance(1)
    reporter.end()
    files = [output, *beside]
    if ending == ".tsv" and (picture := _write_sprite(chosen, output.with_suffix(".sprite.png"), reporter)):
        files.append(picture)
    return ExportReport(files, chosen.layers, len(chosen.rows), sum(path.stat().st_size for path in files))


def _selection(path: Path, config: ExportConfig, *, without_failed: bool) -> Selection:
    features = open_features(path)
    asked = None if config.layers is None else [word.strip() for word in config.layers.split(",")]
    layers = [features.only_layer(layer) for layer in asked] if asked else list(features)
    wanted = np.ones(len(features), bool)
    if config.split is not None:
        if config.split not in features.splits:
            have = ", ".join(features.splits) or "none"
            raise LabelError(f"{features.path} has no split {config.split!r}; its splits: {have}")
        wanted &= features.split_of == features.splits.index(config.split)
    if config.done or without_failed:
        wanted &= features.status == Status.DONE
    return Selection(features, layers, np.flatnonzero(wanted))


def _write_rows(chosen: Selection, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "status"])
        writer.writerows(chosen.table(raw=True))


def _write_sprite(chosen: Selection, path: Path, reporter: Reporter) -> Path | None:
    """Small images row by row, as the projector wants them; None if the images are gone or too many."""
    columns = int(np.ceil(np.sqrt(max(1, len(chosen.rows)))))
    side = min(_MOST_SPRITE, _SPRITE_SIDE // columns)
    if side < _LEAST_SPRITE or not len(chosen.rows):
        reporter.note(
            f"note: {plural(len(chosen.rows), 'image')} do not fit on a sheet of small images; there is none"
        )
        return None
    features = chosen.features
    source = SourceImages(features.provenance["source"])
    pictures, missing = thumbnails(
        chosen.rows.tolist(),
        lambda row: source.content(features.raw_paths[row], features.sha256[row].tobytes()),
        side,
    )
    if len(missing) == len(chosen.rows):
        reporter.note("note: the images are not there any more, so there is no sheet of small images")
        return None
    with replacing(path) as partial:
        Image.fromarray(sprite(pictures)).save(partial, "PNG")
    return path
