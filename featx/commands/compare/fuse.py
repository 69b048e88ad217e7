"""`featx fuse`: several heads on features of the same images as one decision: a mean, or an SVM on their scores."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.artifacts.head_rows import kept_together, split_rows
from featx.errors import LabelError, UsageError
from featx.extraction.model import layer_for
from featx.heads.labels import labels_among
from featx.heads.linear_head import LinearHead
from featx.heads.normalize import l2_normalized
from featx.heads.quality.metrics import Metrics, measure
from featx.heads.trained_on import count_among
from featx.options.heads import FitConfig, FuseConfig
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.text import plural, printable, table
from featx.store.open import open_features
from featx.store.reader import Features, flat_rows

FIRST_COLUMNS = "path,label,part,average,svm"


@dataclass(frozen=True)
class FuseReport(Report):
    """How good several heads are, alone and together.

    Attributes:
        alone: head -> its measure on the test rows.
        average: of the mean of their probabilities or decision values.
        svm: of a linear SVM on their scores, each brought to length 1, fitted on the training rows.
    """

    output: Path | None
    train: int
    test: int
    alone: dict[str, Metrics]
    average: Metrics
    svm: Metrics

    def lines(self) -> list[str]:
        rows = [[name, f"{one.accuracy:.1%}", f"{one.mean_per_class:.1%}"] for name, one in self.alone.items()]
        rows += [
            [name, f"{one.accuracy:.1%}", f"{one.mean_per_class:.1%}"]
            for name, one in (("average", self.average), ("svm", self.svm))
        ]
        title = f"{plural(self.train, 'training image')}, {plural(self.test, 'test image')}"
        saved = [] if self.output is None else [f"saved as {self.output}"]
        return [title, *table(["", "accuracy", "mean per class"], rows), *saved]


def fuse_heads(
    heads: Sequence[tuple[str | os.PathLike[str], str | os.PathLike[str]]],
    output: str | os.PathLike[str] | None = None,
    config: FuseConfig | None = None,
    *,
    reporter: Reporter = SILENT,
) -> FuseReport:
    """Decide with several heads together (late fusion; Simonyan & Zisserman, NIPS 2014, section 2).

    Args:
        heads: (head, features) pairs; all features are of the same images, and all heads know the same classes. With
            the options the heads were fitted with, the test rows are those that they were not trained on; a note says
            so where they are.
        output: a CSV with path, label, part (train or test), the decisions of both ways, and that of each head; None
            to report only.

    Raises:
        UsageError: fewer than two heads; other images or classes; probabilities beside decision values; an output
            that is something else.
        LabelError: no rows to train or test on.
    """
    config, target = config or FuseConfig(), None if output is None else Path(output)
    if len(heads) < 2:
        raise UsageError("fuse takes several heads: HEAD=FEATURES HEAD=FEATURES")
    _refuse_foreign(target)
    names = [str(head) for head, _ in heads]
    if len({*names, "average", "svm"}) < len(names) + 2:
        raise UsageError(f"{', '.join(names)}: each head is named once, and none average or svm")
    loaded = [(LinearHead.load(head), open_features(features)) for head, features in heads]
    first, images = loaded[0]
    places = [_places(images, features) for _, features in loaded]
    for (head, _), (path, _) in zip(loaded, heads, strict=True):
        if head.multilabel or head.classes != first.classes:
            raise UsageError(f"{path} knows other classes than {heads[0][0]}; heads decide together on the same ones")
        if (head.rule.probabilities(np.zeros((1, len(head.classes)))) is None) != (
            first.rule.probabilities(np.zeros((1, len(first.classes)))) is None
        ):
            raise UsageError(f"{path} and {heads[0][0]}: probabilities and decision values have no common mean")
    rows = images.usable()
    for (_, features), place in zip(loaded, places, strict=True):
        rows = rows[np.isin(place[rows], np.flatnonzero(features.status == 1))]
    asked = FitConfig(
        test=config.test, split_column=config.split_column, per_class=config.per_class, seed=config.seed,
        group_by=config.group_by,
    )  # fmt: skip
    train, test = split_rows(images, rows, kept_together(images, rows, config.group_by), asked, multilabel=False)
    labels = labels_among(first.classes, images.classes, images.labels, multilabel=False).astype(np.int64)
    train, test = train[labels[train] >= 0], test[labels[test] >= 0]
    for (path, _), (head, features), place in zip(heads, loaded, places, strict=True):
        if seen := count_among(features.sha256[place[test]], head.trained_on):
            reporter.note(
                f"note: {seen:,} of {plural(len(test), 'test image')} have the bytes of images that {path} was "
                f"trained on, so what is measured is too good"
            )
    if not len(train) or not len(test):
        raise LabelError(f"{images.path}: {len(train)} rows to train on and {len(test)} to test on; both are needed")
    # A head alone decides by its scores, as everywhere; what is averaged are probabilities where there are some.
    scores, outputs, used = [], [], np.concatenate([train, test])
    for (head, features), place in zip(loaded, places, strict=True):
        own = np.full((len(images), len(first.classes)), np.nan)
        own[used] = head.scores(flat_rows(features[layer_for(head, features)])[place[used]])
        given = own.copy()
        given[used] = head.rule.outputs(own[used])
        scores.append(own)
        outputs.append(given)
    mean = np.mean(outputs, axis=0)
    stacked = np.zeros((len(images), len(scores) * len(first.classes)))
    stacked[used] = np.hstack([l2_normalized(one[used]) for one in outputs])
    fused = _svm(stacked, train, labels, first.classes, config, reporter)
    if target is not None:
        columns = {"average": mean, "svm": fused, **dict(zip([str(path) for path, _ in heads], scores, strict=True))}
        _write(target, images, train, test, labels, first.classes, columns)
    return FuseReport(
        output=target,
        train=len(train),
        test=len(test),
        alone={
            str(path): measure(one[test], labels[test], first.classes)
            for (path, _), one in zip(heads, scores, strict=True)
        },
        average=measure(mean[test], labels[test], first.classes),
        svm=measure(fused[test], labels[test], first.classes),
    )


def _places(images: Features, features: Features) -> npt.NDArray[np.intp]:
    """The row of a features file for each image of another."""
    row_of = {path: row for row, path in enumerate(features.raw_paths)}
    missing = [path for path in images.raw_paths if path not in row_of]
    if missing:
        raise UsageError(f"{printable(missing[0])} of {images.path} is not in {features.path}")
    return np.array([row_of[path] for path in images.raw_paths], np.intp)


def _svm(
    stacked: npt.NDArray[np.float64],
    train: npt.NDArray[np.intp],
    labels: npt.NDArray[np.int64],
    classes: list[str],
    config: FuseConfig,
    reporter: Reporter,
) -> npt.NDArray[np.float64]:
    """(N, K) decision values of a linear SVM on scores (N, D)."""
    import torch

    from featx.heads.selection.search import fit_heads

    found = fit_heads(
        "svm", stacked, train, labels[train].astype(np.int32), classes, c=config.c, folds=config.folds,
        seed=config.seed, normalize="none", device=torch.device("cpu"), memory_bytes=1 << 30, reporter=reporter,
    )  # fmt: skip
    scores: npt.NDArray[np.float64] = stacked @ found.weights.T + found.bias
    return scores


def _refuse_foreign(path: Path | None) -> None:
    if path is None or not path.exists():
        return
    with path.open("rb") as file:
        if file.read(len(FIRST_COLUMNS)) != FIRST_COLUMNS.encode():
            raise UsageError(f"{path} exists and is not a table of featx fuse; choose another name with -o")


def _write(
    path: Path,
    images: Features,
    train: npt.NDArray[np.intp],
    test: npt.NDArray[np.intp],
    labels: npt.NDArray[np.int64],
    classes: list[str],
    columns: dict[str, npt.NDArray[np.float64]],
) -> None:
    part = {**dict.fromkeys(train.tolist(), "train"), **dict.fromkeys(test.tolist(), "test")}
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*FIRST_COLUMNS.split(",")[:3], *columns])
        for row in sorted(part):
            decided = [classes[int(scores[row].argmax())] for scores in columns.values()]
            writer.writerow([images.paths[row], classes[labels[row]], part[row], *decided])
