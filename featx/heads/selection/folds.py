"""The folds of a cross-validation: which rows each holds out."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from featx.errors import LabelError
from featx.heads.labels import Labels
from featx.runtime.text import plural


def folds_of(
    labels: Labels, folds: int, seed: int, classes: list[str], copies: npt.NDArray[np.intp] | None = None
) -> npt.NDArray[np.bool_]:
    """(F, n): which rows each fold holds out, the same share of every class where an image has only one.

    Every fold trains on images of every class: rows whose fold would be left without any of theirs, as those of a
    class with a single image, are held out nowhere.

    Args:
        copies: (n,) from `splits.copies_of`: rows of the same bytes are in the same fold.

    Raises:
        LabelError: no class has as many rows as folds, or there are fewer rows that belong together than folds.
    """
    several = labels.ndim == 2
    counts = labels.sum(axis=0) if several else np.bincount(labels)
    most = int(counts.argmax())
    if counts[most] < folds:
        raise LabelError(
            f"the largest class, {classes[most]!r}, has {counts[most]} images to train on; --folds {folds} needs "
            f"{folds}. Give fewer --folds, or a value with --c"
        )
    held_out = np.zeros((folds, len(labels)), bool)
    if copies is None or len(np.unique(copies)) == len(copies):
        copies, kind = None, KFold if several else StratifiedKFold
    else:
        kind = GroupKFold if several else StratifiedGroupKFold
        if len(np.unique(copies)) < folds:
            raise LabelError(
                f"the images to train on are {plural(len(np.unique(copies)), 'group')} that stay together; --folds "
                f"{folds} needs {folds}. Give fewer --folds, or a value with --c"
            )
    splitter = kind(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # taken care of below
        for fold, (_, test) in enumerate(splitter.split(labels, labels, copies)):
            held_out[fold, test] = True
    members = labels.astype(bool) if several else labels[:, None] == np.arange(len(counts))
    for fold in range(folds):
        missing = members.any(axis=0) & ~members[~held_out[fold]].any(axis=0)
        held_out[fold] &= ~members[:, missing].any(axis=1)
    return held_out


def rare_classes(labels: Labels, folds: int, classes: list[str]) -> list[str]:
    """Classes with fewer rows than folds: not every fold tests on them."""
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts.tolist(), strict=True) if 0 < count < folds]
