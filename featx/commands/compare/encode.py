"""`featx encode`: how well a linear model of each layer predicts responses to the images."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.artifacts.artifact import plan_of
from featx.artifacts.head_rows import kept_together
from featx.artifacts.responses import Responses, read_responses
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.figures.bars import draw_encoding
from featx.options.analysis import EncodeConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import format_bytes, plural, printable
from featx.store.open import named_layers, open_features
from featx.store.reader import Features, flat_rows

TABLE, NUMBERS = "encoding.csv", "encoding.npz"


def encode_responses(
    features: str | os.PathLike[str],
    responses: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: EncodeConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Predict responses to images from each layer of a features file by ridge regression.

    Nested cross-validation: the images are divided into `config.folds`, files of the same bytes in the same one;
    leaving out each of the images outside a fold chooses the penalty of each response, and the fold says how good the
    predictions are. Writes encoding.csv (layer, response, r, R^2, and with repeats the noise ceiling and r over it),
    encoding.npz (r, r2 (L, R), alphas (L, folds, R), ceiling (R,)) and a picture. The same call again goes on where
    an interrupted one has stopped, by layer.

    Args:
        responses: see `read_responses`.

    Raises:
        UsageError and its children: responses that do not fit; an unknown layer; too little memory.
        PlanMismatch: the folder holds something else.
    """
    import torch

    from featx.analysis.encoding import bytes_needed, encode, grid_for, noise_ceiling
    from featx.runtime.device import choose_device
    from featx.runtime.memory import free_memory

    config = config or EncodeConfig()
    opened = open_features(features)
    layers = named_layers(opened, config.layers)
    given = read_responses(Path(responses), opened)
    if len(given.rows) < 2 * config.folds:
        raise UsageError(
            f"{plural(len(given.rows), 'image')} of {opened.path} have responses; --folds {config.folds} needs "
            f"{2 * config.folds}"
        )
    picture = f"encoding.{config.format}"
    folder = ShownFolder(Path(output), [picture, TABLE, NUMBERS], "featx encode", reporter)
    plan = plan_of(
        config, without=("device",), show="encode", features=opened.digest, layers=layers,
        responses=_digest(given),
    )  # fmt: skip
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    if given.left_out:
        reporter.note(f"note: {plural(given.left_out, 'image')} failed, or have no responses: left out")
    device = choose_device(config.device)
    mean = given.values.mean(axis=0)
    held_out = _folds(opened, given.rows, config)
    folder.begin(plan)
    found: list[dict[str, Any]] = []
    for layer in layers:
        values = flat_rows(opened[layer])
        needed = bytes_needed(len(given.rows), values.shape[1], mean.shape[1])
        if needed > free_memory(device):
            raise UsageError(
                f"{layer} needs {format_bytes(needed)} of memory and {format_bytes(free_memory(device))} are free; "
                f"use fewer values (featx extract --pool avg, or --reduce pca:N) or fewer images"
            )

        def compute(values: npt.NDArray[Any] = values, layer: str = layer) -> dict[str, npt.NDArray[Any]]:
            rows = np.asarray(values[given.rows], np.float64)
            if not np.isfinite(rows).all():
                raise opened.damaged_row(layer, int(given.rows[(~np.isfinite(rows).all(1)).argmax()]))
            alphas = grid_for(rows)
            reporter.begin(f"ridge on {layer}", len(alphas))
            made = encode(rows, mean, held_out, alphas, device, reporter.advance)
            reporter.end()
            edge = float(((made.alphas == alphas[0]) | (made.alphas == alphas[-1])).mean())
            return {**vars(made), "edge": np.array(edge)}

        with torch.no_grad():
            found.append(dict(folder.remembered(f"layer-{len(found)}", compute)))
    r, r2 = np.array([one["r"] for one in found]), np.array([one["r2"] for one in found])
    ceiling = noise_ceiling(given.values) if len(given.values) > 1 else None
    arrays = {"r": r, "r2": r2, "alphas": np.array([one["alphas"] for one in found])}
    folder.save_arrays(NUMBERS, arrays if ceiling is None else {**arrays, "ceiling": ceiling})
    _write_table(folder.path / TABLE, layers, given.names, r, r2, ceiling)
    counts = f"{plural(len(given.names), 'response')} to {plural(len(given.rows), 'image')}"
    title = f"{opened.provenance['backbone']}: {counts}"
    draw_encoding(r, ceiling, layers, folder.path / picture, title)
    reporter.notes(_notes(r, ceiling, max(float(one["edge"]) for one in found)))
    rows = [[layer, *_summary(r[place], ceiling)] for place, layer in enumerate(layers)]
    columns = ["layer", "median r", "quartiles", "best"] + ([] if ceiling is None else ["median r / ceiling"])
    return folder.finish(plan, columns, rows)


def _notes(r: npt.NDArray[np.float64], ceiling: npt.NDArray[np.float64] | None, edge: float) -> list[str]:
    """What a reader of the table should know of responses (layers, responses).

    Args:
        edge: the share of penalties at an end of what was tried, of the layer with the most.
    """
    notes = []
    if edge > 0.5:
        notes.append(
            f"note: {edge:.0%} of the penalties are at an end of what was tried: those responses cannot be "
            f"predicted, or need more images"
        )
    if unknown := int((~np.isfinite(r)).all(axis=0).sum()):
        notes.append(f"note: left out, as they are the same for every image: {plural(unknown, 'response')}")
    if ceiling is not None and (noise := int((ceiling <= 0).sum())):
        notes.append(f"note: left out of r / ceiling, as their noise ceiling is 0: {plural(noise, 'response')}")
    return notes


def _digest(given: Responses) -> str:
    import hashlib

    found = hashlib.sha256(repr((given.values.shape, given.names)).encode())
    found.update(given.rows.astype(np.int64).tobytes())
    found.update(given.values.tobytes())
    return found.hexdigest()


def _folds(features: Features, rows: npt.NDArray[np.intp], config: EncodeConfig) -> npt.NDArray[np.bool_]:
    from featx.heads.selection.folds import folds_of

    together = kept_together(features, rows, config.group_by)
    return folds_of(np.zeros(len(rows), np.int32), config.folds, config.seed, ["images"], together)


def _summary(r: npt.NDArray[np.float64], ceiling: npt.NDArray[np.float64] | None) -> list[str]:
    known = r[np.isfinite(r)]
    if not len(known):
        return ["", "", ""] + ([] if ceiling is None else [""])
    low, middle, high = np.percentile(known, [25, 50, 75])
    shown = [f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{known.max():.3f}"]
    if ceiling is None:
        return shown
    good = np.isfinite(r) & (ceiling > 0)
    return [*shown, f"{np.median(r[good] / ceiling[good]):.3f}" if good.any() else ""]


def _write_table(
    path: Path,
    layers: list[str],
    names: list[str],
    r: npt.NDArray[np.float64],
    r2: npt.NDArray[np.float64],
    ceiling: npt.NDArray[np.float64] | None,
) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", "response", "r", "r2", *([] if ceiling is None else ["ceiling", "r_of_ceiling"])])
        for layer, of_layer, squares in zip(layers, r, r2, strict=True):
            for place, name in enumerate(names):
                line = [printable(layer), printable(name), _number(of_layer[place]), _number(squares[place])]
                if ceiling is not None:
                    share = of_layer[place] / ceiling[place] if ceiling[place] > 0 else np.nan
                    line += [_number(ceiling[place]), _number(share)]
                writer.writerow(line)


def _number(value: float) -> str:
    return f"{value:.6f}" if np.isfinite(value) else ""
