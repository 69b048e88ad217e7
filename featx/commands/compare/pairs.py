"""`featx pairs`: are two images of the same person?"""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path

import numpy as np

from featx.artifacts.artifact import plan_of
from featx.artifacts.shown_folder import ShownFolder, ShowReport
from featx.errors import UsageError
from featx.figures.roc import draw_roc
from featx.options.show import PairsConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import plural, printable
from featx.store.open import open_features
from featx.store.reader import flat_rows

TABLE, NUMBERS = "pairs.csv", "roc.npz"


def compare_pairs(
    features: str | os.PathLike[str],
    pairs: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: PairsConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> ShowReport:
    """Measure how well distances of features tell pairs of the same from pairs of different (LFW's protocol).

    Ten folds: the threshold with which most of nine are right is measured on the tenth. Writes pairs.csv with every
    distance, roc.png, and roc.npz with `METRIC false` and `METRIC true`.

    Args:
        pairs: a CSV file with the columns path, path2, same[, fold], or LFW's pairs.txt.

    Raises:
        UsageError and its children: no such layer; a pair that is not in the features; chi-square of negative values.
        PlanMismatch: the folder holds another comparison.
    """
    config = config or PairsConfig()
    from featx.analysis.pairs import METRICS, distances, read_pairs, verify_pairs

    metrics = list(dict.fromkeys(word.strip() for word in config.metric.split(",")))
    for metric in metrics:
        if metric not in METRICS:
            raise UsageError(f"--metric is {metric!r}; it can be {', '.join(METRICS)}, separated by commas")
    opened = open_features(features)
    layer = opened.only_layer(config.layer)
    given = read_pairs(Path(pairs), opened)
    picture = f"roc.{config.format}"
    folder = ShownFolder(Path(output), [picture, TABLE, NUMBERS], "featx pairs", reporter)
    digest = hashlib.sha256(Path(pairs).read_bytes()).hexdigest()
    plan = plan_of(config, show="pairs", features=opened.digest, layer=layer, pairs=digest)
    if (finished := folder.take_finished(plan)) is not None:
        return finished
    far = {metric: distances(flat_rows(opened[layer]), given, metric) for metric in metrics}
    found = [verify_pairs(far[metric], given, metric, config.seed) for metric in metrics]
    folder.begin(plan)
    title = f"{opened.provenance['backbone']} {layer}, {plural(len(given.same), 'pair')} of {opened.path.name}"
    draw_roc(
        {f"{one.metric} (AUC {one.auc:.3f})": (one.false_positive, one.true_positive) for one in found},
        folder.path / picture, title,
    )  # fmt: skip
    with replacing(folder.path / TABLE) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "path2", "same", *metrics])
        for place, same in enumerate(given.same.tolist()):
            names = [printable(opened.raw_paths[rows[place]]) for rows in (given.first, given.second)]
            writer.writerow([*names, int(same), *(f"{far[metric][place]:.9g}" for metric in metrics)])
    arrays = {f"{one.metric} false": one.false_positive for one in found}
    folder.save_arrays(NUMBERS, {**arrays, **{f"{one.metric} true": one.true_positive for one in found}})
    rows = [
        [one.metric, f"{100 * one.accuracy:.2f}", f"{100 * one.error:.2f}", f"{one.auc:.4f}", f"{100 * one.eer:.2f}",
         f"{one.threshold:.4g}"]
        for one in found
    ]  # fmt: skip
    reporter.note(f"{int(given.same.sum()):,} pairs of the same, {int(np.sum(~given.same)):,} of different")
    return folder.finish(plan, ["distance", "accuracy (%)", "+-", "AUC", "EER (%)", "threshold"], rows)
