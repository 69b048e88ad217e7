"""Are two images of the same person? Distances of pairs, and how well a threshold tells."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import UsageError
from featx.runtime.text import printable
from featx.status import Status
from featx.store.reader import Features

METRICS = ("cosine", "chi-square", "l2")
COLUMNS = ("path", "path2", "same")
FOLDS = 10
_TRUE, _FALSE = {"1", "true", "yes", "same"}, {"0", "false", "no", "different"}
_LFW_HEAD = re.compile(r"(\d{1,4})\s+(\d{1,7})")
Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows of a features file.

    Attributes:
        first, second: (P,) rows.
        same: (P,) whether both show the same.
        fold: (P,) of a published division; None where there is none.
    """

    first: Rows
    second: Rows
    same: npt.NDArray[np.bool_]
    fold: Rows | None


@dataclass(frozen=True)
class Verification:
    """How well one distance tells same from different.

    Attributes:
        accuracy, error: mean over ten folds, and its standard error; the threshold is that of the other nine.
        threshold: mean over the folds.
        auc: area below the ROC curve.
        eer: equal error rate, where as many are wrongly accepted as wrongly refused.
        false_positive, true_positive: the ROC curve.
    """

    metric: str
    accuracy: float
    error: float
    threshold: float
    auc: float
    eer: float
    false_positive: Floats
    true_positive: Floats


def read_pairs(path: Path, features: Features) -> Pairs:
    """Pairs of a CSV file with the columns path, path2, same[, fold], or of LFW's pairs.txt.

    LFW's lines are `NAME N1 N2` for the same person and `NAME1 N1 NAME2 N2` for two, behind a line with the number of
    folds and of pairs in each half of one; the image is NAME/NAME_0001.jpg.

    Raises:
        UsageError: it is neither, or a pair is not in the features.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    lines = text.splitlines()
    head = _LFW_HEAD.fullmatch(lines[0].strip()) if lines else None
    found = _of_lfw(path, lines, int(head[1]), int(head[2])) if head else _of_csv(path, text)
    rows = _rows_by_name(features, with_ending=head is None)
    places = []
    for line, names, _, _ in found:
        for name in names:
            if name not in rows:
                raise UsageError(f"{path}, line {line}: {printable(name)} is not among the images of {features.path}")
            if features.status[rows[name]] != Status.DONE:
                raise UsageError(f"{path}, line {line}: {printable(name)} failed, it has no features")
        places.append([rows[name] for name in names])
    both = np.array(places, np.intp)
    same = np.array([one[2] for one in found], np.bool_)
    if len(found) < 2 * FOLDS or min(same.sum(), (~same).sum()) < FOLDS:
        raise UsageError(f"{path} has {int(same.sum())} pairs of the same and {int((~same).sum())} of different; "
                         f"{FOLDS} of each are needed")  # fmt: skip
    folds = np.array([one[3] for one in found], np.intp)
    return Pairs(both[:, 0], both[:, 1], same, None if (folds < 0).all() else folds)


def distances(values: npt.NDArray[Any], pairs: Pairs, metric: str) -> Floats:
    """(P,) of rows (N, D): 1 - cosine, sum (a - b)^2 / (a + b), or the euclidean distance.

    Raises:
        UsageError: chi-square of negative values, for which it means nothing.
    """
    found = np.empty(len(pairs.same))
    step = max(1, (64 << 20) // max(1, 16 * values.shape[1]))
    for start in range(0, len(found), step):
        a, b = (values[rows[start : start + step]].astype(np.float64) for rows in (pairs.first, pairs.second))
        part = slice(start, start + len(a))
        if metric == "l2":
            found[part] = np.sqrt(np.square(a - b).sum(axis=1))
        elif metric == "chi-square":
            if min(a.min(), b.min()) < 0:
                raise UsageError("chi-square is for values of 0 and more, as behind a ReLU; these are negative too")
            total = a + b
            found[part] = (np.square(a - b) / np.where(total == 0, 1.0, total)).sum(axis=1)
        else:
            scale = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
            found[part] = 1 - (a * b).sum(axis=1) / np.where(scale == 0, 1.0, scale)
    return found


def verify_pairs(far: Floats, pairs: Pairs, metric: str, seed: int) -> Verification:
    """The protocol of LFW: ten folds, the threshold of nine measured on the tenth.

    Args:
        far: (P,) distances.

    Source:
        Huang, Ramesh, Berg & Learned-Miller, Labeled faces in the wild, 2007, section 4.
    """
    from sklearn.metrics import auc, roc_curve
    from sklearn.model_selection import StratifiedKFold

    folds = pairs.fold
    if folds is None:
        folds = np.empty(len(far), np.intp)
        divided = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(far[:, None], pairs.same)
        for number, (_, test) in enumerate(divided):
            folds[test] = number
    accuracies, thresholds = [], []
    for number in np.unique(folds):
        test = folds == number
        threshold = best_threshold(far[~test], pairs.same[~test])
        accuracies.append(float(((far[test] <= threshold) == pairs.same[test]).mean()))
        thresholds.append(threshold)
    wrong, right, _ = roc_curve(pairs.same, -far, drop_intermediate=False)
    return Verification(
        metric, float(np.mean(accuracies)), float(np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))),
        float(np.mean(thresholds)), float(auc(wrong, right)), equal_error_rate(wrong, right), wrong, right,
    )  # fmt: skip


def best_threshold(far: Floats, same: npt.NDArray[np.bool_]) -> float:
    """The distance up to which pairs are called the same, such that most are right; between two distances.

    >>> best_threshold(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, False]))
    2.5
    """
    order = np.argsort(far, kind="stable")
    sorted_far, sorted_same = far[order], same[order]
    # right[i]: with the first i pairs called the same
    right = np.concatenate([[0], np.cumsum(sorted_same)]) + np.concatenate([np.cumsum(~sorted_same[::-1])[::-1], [0]])
    between = np.concatenate([[True], sorted_far[1:] > sorted_far[:-1], [True]])  # equal ones are called alike
    place = int(np.argmax(np.where(between, right, -1)))
    if place == 0:
        return float(np.nextafter(sorted_far[0], -np.inf))
    if place == len(far):
        return float(sorted_far[-1])
    return float((sorted_far[place - 1] + sorted_far[place]) / 2)


def equal_error_rate(false_positive: Floats, true_positive: Floats) -> float:
    """Where the ROC curve crosses the line from the upper left corner down, between its points."""
    gap = false_positive - (1 - true_positive)  # rises from -1 to 1
    place = int(np.argmax(gap >= 0))
    if place == 0 or gap[place] == 0:
        return float(false_positive[place])
    share = -gap[place - 1] / (gap[place] - gap[place - 1])
    return float(false_positive[place - 1] + share * (false_positive[place] - false_positive[place - 1]))


_Found = list[tuple[int, tuple[str, str], bool, int]]  # line, both names, same, fold


def _of_csv(path: Path, text: str) -> _Found:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = [name.strip() for name in reader.fieldnames or ()]
    if not set(COLUMNS) <= set(columns):
        raise UsageError(
            f"{path} has the columns {', '.join(columns) or 'none'}; it needs {', '.join(COLUMNS)}, or must be LFW's "
            f"pairs.txt"
        )
    found: _Found = []
    for row in reader:
        word = (row["same"] or "").strip().lower()
        if word not in _TRUE | _FALSE:
            raise UsageError(f"{path}, line {reader.line_num}: same is {printable(word)!r}; it can be 1 or 0")
        fold = (row.get("fold") or "").strip()
        if fold and not fold.isdigit():
            raise UsageError(f"{path}, line {reader.line_num}: fold is {printable(fold)!r}; it must be a number")
        names = (row["path"] or "").strip(), (row["path2"] or "").strip()
        found.append((reader.line_num, names, word in _TRUE, int(fold) if fold else -1))
    if any(one[3] < 0 for one in found) and any(one[3] >= 0 for one in found):
        raise UsageError(f"{path}: some pairs have a fold and some have none")
    return found


def _of_lfw(path: Path, lines: list[str], folds: int, count: int) -> _Found:
    found: _Found = []
    for number, line in enumerate(lines[1:], 2):
        words = line.split()
        if not words:
            continue
        if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
            names, same = ((words[0], words[1]), (words[0], words[2])), True
        elif len(words) == 4 and words[1].isdigit() and words[3].isdigit():
            names, same = ((words[0], words[1]), (words[2], words[3])), False
        else:
            raise UsageError(f"{path}, line {number}: a pair is NAME N1 N2 or NAME1 N1 NAME2 N2")
        first, second = (f"{name}/{name}_{int(index):04d}" for name, index in names)
        found.append((number, (first, second), same, len(found) // (2 * count)))
    if len(found) != 2 * folds * count:
        raise UsageError(f"{path} has {len(found)} pairs; its first line says {2 * folds * count}")
    return found


def _rows_by_name(features: Features, *, with_ending: bool) -> dict[str, int]:
    """path -> row; without endings its last folder and name."""
    if with_ending:
        return {path: row for row, path in enumerate(features.paths)}
    found = {}
    for row, path in enumerate(features.paths):
        name = Path(path)
        found[f"{name.parent.name}/{name.stem}"] = row
    return found
