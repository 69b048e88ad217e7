"""`featx similarity`: how similar the layers of two features files are, of the same images."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.analysis import similarity
from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.figures.matrices import draw_matrix
from featx.options.analysis import SimilarityConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import plural
from featx.status import Status
from featx.store.open import named_layers, open_features
from featx.store.reader import Features, flat_rows

TABLE, NUMBERS = "similarity.csv", "similarity.npz"
_FEWEST = 4  # images, for the unbiased estimate


def compare_representations(
    features: str | os.PathLike[str],
    others: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: SimilarityConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Compare every layer of a features file with every layer of another, or of the same.

    Images are matched by their bytes; those that only one file has are left out, and of more than `config.most` as
    many are chosen at random. Writes similarity.csv, similarity.npz with `values` (A, B) and, of bootstraps, `low`
    and `high`, and a picture. The measures are those of `featx.analysis.similarity`.

    Raises:
        UsageError and its children: an unknown layer; fewer than four images in common.
        PlanMismatch: the folder holds another comparison.
    """
    config = config or SimilarityConfig()
    first, second = open_features(features), open_features(others)
    names = named_layers(first, config.layers), named_layers(second, config.layers)
    picture = f"similarity.{config.format}"
    folder = ShownFolder(Path(output), [picture, TABLE, NUMBERS], "featx similarity", reporter)
    plan = plan_of(config, show="similarity", features=[first.digest, second.digest], layers=list(map(list, names)))
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    rows = _matched(first, second, config)
    reporter.note(f"{plural(len(rows[0]), 'image')} of both files are compared")
    values, low, high = _compared((first, second), names, rows, config, reporter)
    folder.begin(plan)
    arrays = {"values": values} | ({"low": low, "high": high} if config.bootstrap and low is not None else {})
    folder.save_arrays(NUMBERS, arrays)  # type: ignore[arg-type]  # low and high are there together
    with replacing(folder.path / TABLE) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", *names[1]])
        writer.writerows(
            [name, *(f"{value:.6f}" for value in row)] for name, row in zip(names[0], values, strict=True)
        )
    title = f"{config.metric} of {plural(len(rows[0]), 'image')}"
    axes = tuple(f"{one.provenance['backbone']} ({one.path.name})" for one in (first, second))
    draw_matrix(values, names[0], names[1], folder.path / picture, title, (axes[0], axes[1]))
    table = [
        [name, *(_shown(values, low, high, row, column) for column in range(len(names[1])))]
        for row, name in enumerate(names[0])
    ]
    return folder.finish(plan, ["", *names[1]], table)


def _matched(
    first: Features, second: Features, config: SimilarityConfig
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of the same images in both files, in the order of the first; each image once."""
    hashes = [features.sha256 for features in (first, second)]
    row_of = {hashes[1][row].tobytes(): row for row in np.flatnonzero(second.status == Status.DONE)[::-1]}
    mine: dict[bytes, int] = {}
    for row in np.flatnonzero(first.status == Status.DONE):
        if (key := hashes[0][row].tobytes()) in row_of:
            mine.setdefault(key, int(row))
    rows = np.array(list(mine.values()), np.intp)
    if len(rows) < _FEWEST:
        raise UsageError(
            f"{first.path} and {second.path} have {plural(len(rows), 'image')} in common; {_FEWEST} are needed. They "
            f"are matched by the bytes of the files"
        )
    if len(rows) > config.most:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, config.most, replace=False))
    return rows, np.array([row_of[hashes[0][row].tobytes()] for row in rows], np.intp)


def _compared(
    files: tuple[Features, Features],
    names: tuple[list[str], list[str]],
    rows: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]],
    config: SimilarityConfig,
    reporter: Reporter,
) -> tuple[similarity.Floats, similarity.Floats | None, similarity.Floats | None]:
    """(A, B) similarities, and the ends of their intervals if there are bootstraps."""

    def summary(side: int, layer: str) -> similarity.Floats:
        values = flat_rows(files[side][layer])[rows[side]]
        if config.metric == "cka-unbiased":
            return np.asarray(values, np.float64)
        if config.metric.startswith("rsa"):
            return similarity.dissimilarity_matrix(values, config.dissimilarity)
        return similarity.factor(values) if config.metric == "procrustes" else similarity.gram(values)

    shape = len(names[0]), len(names[1])
    values, low, high = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    bootstrapped = config.bootstrap and config.metric.startswith("rsa")
    method = "kendall" if config.metric == "rsa-kendall" else "spearman"
    reporter.begin("compare layers", shape[0] * shape[1])
    theirs = {layer: summary(1, layer) for layer in names[1]} if len(names[1]) <= len(names[0]) else {}
    for row, layer in enumerate(names[0]):
        mine = summary(0, layer)
        for column, other in enumerate(names[1]):
            there = theirs[other] if other in theirs else summary(1, other)
            place = row, column
            if config.metric == "cka":
                values[place] = similarity.cka(mine, there)
            elif config.metric == "cka-unbiased":
                values[place] = similarity.cka_unbiased(mine, there, config.batch, config.seed)
            elif config.metric == "procrustes":
                values[place] = similarity.procrustes(mine, there)
            else:
                values[place] = similarity.rsa(mine, there, method)
                if bootstrapped:
                    low[place], high[place] = similarity.rsa_interval(
                        mine, there, method, config.bootstrap, config.seed
                    )
            reporter.advance(1)
    reporter.end()
    return (values, low, high) if bootstrapped else (values, None, None)


def _shown(
    values: similarity.Floats, low: similarity.Floats | None, high: similarity.Floats | None, row: int, column: int
) -> str:
    text = f"{values[row, column]:.3f}"
    return text if low is None or high is None else f"{text} ({low[row, column]:.3f} to {high[row, column]:.3f})"
