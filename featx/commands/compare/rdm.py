"""`featx rdm`: how different the layers of a features file find every two images."""

from __future__ import annotations

import csv
import itertools
import os
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from featx.analysis.dissimilarity import dissimilarities
from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import LabelError, UsageError
from featx.figures.matrices import draw_rdm
from featx.options.analysis import RdmConfig
from featx.runtime.files import disk_errors, replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import plural, printable
from featx.status import Status
from featx.store.open import named_layers, open_features
from featx.store.reader import Features, flat_rows

TABLE = "images.csv"


def representational_dissimilarity(
    features: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: RdmConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Write a folder with LAYER.npy (or .csv, .h5), the (N, N) dissimilarities in float32, pictures, and images.csv.

    The rows are the images that did not fail, in the order of the file; images.csv names them. They are computed in
    float64, with two blocks of images in memory.

    Raises:
        UsageError and its children: an unknown layer or split; fewer than two images.
        PlanMismatch: the folder holds something else.
    """
    config = config or RdmConfig()
    opened = open_features(features)
    layers = named_layers(opened, config.layers)
    rows = _rows(opened, config.split)
    stems = {layer: layer.replace(":", "_").replace("/", "_") for layer in layers}
    if len(set(stems.values())) < len(stems):
        raise UsageError(f"two of the layers {', '.join(layers)} would have one file; ask for them one by one")
    files = [TABLE, *(f"{stem}{end}" for stem in stems.values() for end in (f".{config.save}", f".{config.format}"))]
    folder = ShownFolder(Path(output), files, "featx rdm", reporter)
    plan = plan_of(config, show="rdm", features=opened.digest, layers=layers)
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    folder.begin(plan)
    if failed := int(((opened.status != Status.DONE) & _wanted(opened, config.split)).sum()):
        reporter.note(
            f"note: {plural(failed, 'image')} that could not be read {'is' if failed == 1 else 'are'} left out, so "
            f"row i is not row i of {opened.path}: {TABLE} has the paths of the rows"
        )
    groups = _groups(opened, rows)
    report = []
    for layer, stem in stems.items():
        target = folder.path / f"{stem}.{config.save}"
        reporter.begin(f"dissimilarities in {layer}", len(rows))
        with disk_errors(target), replacing(target) as partial:
            found: npt.NDArray[np.float32]
            if config.save == "npy":
                found = np.lib.format.open_memmap(partial, "w+", np.float32, (len(rows), len(rows)))
            else:
                found = np.empty((len(rows), len(rows)), np.float32)
            dissimilarities(flat_rows(opened[layer])[rows], config.metric, found, reporter.advance)
            _save(found, partial, config.save)
        reporter.end()
        title = f"{opened.provenance['backbone']} {layer}: {config.metric} of {plural(len(rows), 'image')}"
        draw_rdm(found, groups, folder.path / f"{stem}.{config.format}", title)
        report.append([layer, *_within_and_between(found, opened.labels[rows])])
        del found
    _write_images(opened, rows, folder.path / TABLE)
    return folder.finish(plan, ["layer", "mean", "within classes", "between classes"], report)


def _save(found: npt.NDArray[np.float32], path: Path, kind: str) -> None:
    """Write an RDM; one that is a map of its file is there already."""
    if isinstance(found, np.memmap):
        found.flush()
    elif kind == "csv":
        np.savetxt(path, found, fmt="%.9g", delimiter=",")
    else:
        with h5py.File(path, "w") as file:
            file["rdm"] = found


def _wanted(features: Features, split: str | None) -> npt.NDArray[np.bool_]:
    """(N,) the images of a split."""
    if split is None:
        return np.ones(len(features), bool)
    if split not in features.splits:
        raise LabelError(
            f"{features.path} has no split {split!r}; its splits: {', '.join(features.splits) or 'none'}"
        )
    return np.asarray(features.split_of == features.splits.index(split))


def _rows(features: Features, split: str | None) -> npt.NDArray[np.intp]:
    rows = np.flatnonzero(_wanted(features, split) & (features.status == Status.DONE))
    if len(rows) < 2:
        raise UsageError(f"{features.path} has {plural(len(rows), 'image')} to compare; two are needed")
    return rows


def _groups(features: Features, rows: npt.NDArray[np.intp]) -> list[tuple[str, int]]:
    """Classes whose images follow each other, and how many they are."""
    names = [features.classes[label] if label >= 0 else "" for label in features.labels[rows].tolist()]
    return [(printable(name), len(list(run))) for name, run in itertools.groupby(names)]


def _within_and_between(found: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> list[str]:
    """Mean dissimilarity of all pairs, of pairs of a class, and of pairs of two."""
    sums, counts = np.zeros(2), np.zeros(2)
    for row in range(1, len(found)):
        values = np.asarray(found[row, :row], np.float64)
        good = np.isfinite(values)
        same = (labels[:row] == labels[row]) & (labels[row] >= 0)
        for place, of in enumerate((same, ~same)):
            sums[place] += values[good & of].sum()
            counts[place] += int((good & of).sum())
    shown = [sums.sum() / max(1, counts.sum()), *(sums / np.maximum(1, counts))]
    return [f"{value:.4f}" if count else "" for value, count in zip(shown, [counts.sum(), *counts], strict=True)]


def _write_images(features: Features, rows: npt.NDArray[np.intp], path: Path) -> None:
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label"])
        for row in rows.tolist():
            label = features.labels[row]
            writer.writerow([features.paths[row], features.classes[label] if label >= 0 else ""])
