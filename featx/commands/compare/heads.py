"""`featx compare`: is one head better than another on the same labelled images, or is it chance?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featx.errors import LabelError, UsageError
from featx.extraction.model import layer_for
from featx.heads.labels import is_known, labels_among
from featx.heads.linear_head import LinearHead
from featx.heads.quality.measures import McNemar, mcnemar
from featx.heads.quality.metrics import decisions
from featx.heads.trained_on import count_among
from featx.options.analysis import CompareConfig
from featx.runtime.report import Report
from featx.runtime.text import plural
from featx.store.open import Paths, open_features, paths_of
from featx.store.reader import flat_rows


@dataclass(frozen=True)
class CompareReport(Report):
    """Two heads on the same images.

    Attributes:
        accuracies: of both, on the images of classes that both know.
        trained_on: images that one of them was trained on; None where a head does not say.
    """

    first: Path
    second: Path
    accuracies: tuple[float, float]
    test: McNemar
    trained_on: int | None

    def lines(self) -> list[str]:
        one = self.test
        shares = f"{self.first} {self.accuracies[0]:.1%}, {self.second} {self.accuracies[1]:.1%}"
        text = [
            f"{shares} of {plural(one.images, 'image')}",
            f"both right {one.both:,}, only {self.first.name} {one.only_first:,}, only {self.second.name} "
            f"{one.only_second:,}, neither {one.neither:,}",
            f"difference {one.difference:+.1%} (95 % interval {one.interval.low:+.1%} to {one.interval.high:+.1%}), "
            f"McNemar's exact p = {one.p:.2g}",
        ]
        if self.trained_on:
            text.append(
                f"note: {self.trained_on:,} of these images are among those that one of them was trained on, so this "
                f"says little of images they have not seen"
            )
        return text


def compare_heads(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    features: Paths,
    config: CompareConfig | None = None,
) -> CompareReport:
    """Compare two heads on the rows of a features file, or of several as one.

    Only images of classes that both know count; each head takes its own layer.

    Raises:
        UsageError: heads that give several classes per image.
        FeaturesMismatch: the file does not hold what a head takes.
        LabelError: no labelled image of a class that both know.
    """
    config = config or CompareConfig()
    opened = open_features(*paths_of(features))
    heads = LinearHead.load(first), LinearHead.load(second)
    rows, correct = opened.usable(config.split), []
    for head, path in zip(heads, (first, second), strict=True):
        if head.multilabel:
            raise UsageError(f"{path} gives several classes per image; two decisions are compared")
        known = is_known(labels_among(head.classes, opened.classes, opened.labels, multilabel=False))
        rows = rows[known[rows]]
    if not len(rows):
        raise LabelError(f"{opened.path} has no image of a class that both heads know")
    for head in heads:
        labels = labels_among(head.classes, opened.classes, opened.labels, multilabel=False)[rows].astype(np.int64)
        scores = head.scores(flat_rows(opened[layer_for(head, opened)])[rows])
        correct.append(decisions(scores, labels) == labels)
    seen = [count_among(opened.sha256[rows], head.trained_on) for head in heads]
    return CompareReport(
        first=Path(first),
        second=Path(second),
        accuracies=(float(correct[0].mean()), float(correct[1].mean())),
        test=mcnemar(*correct, bootstrap=config.bootstrap, seed=config.seed),
        trained_on=None if None in seen else max(int(count or 0) for count in seen),
    )
