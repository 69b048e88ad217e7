"""Which classes rows belong to: one each, or several where labels are written `a|b`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from featx.errors import LabelError
from featx.runtime.text import class_name, in_order, plural, printable

SEPARATOR = "|"
Labels = npt.NDArray[np.int32] | npt.NDArray[np.bool_]


def is_multilabel(names: list[str], source_kind: str) -> bool:
    """Whether labels of these names stand for several classes each: a|b in a list or CSV.

    Args:
        source_kind: of the manifest. A folder may be called a|b, and is one class.
    """
    return source_kind in ("csv", "list") and any(SEPARATOR in name for name in names)


def refuse_divided(names: Iterable[str], source_kind: str, where: str) -> None:
    """Raise LabelError for a class whose name would stand for several in a list.

    Args:
        source_kind: as for `is_multilabel`.
        where: the file, for messages.
    """
    divided = next((name for name in names if SEPARATOR in name), None)
    if divided is not None and source_kind not in ("csv", "list"):
        raise LabelError(
            f"{where}: {printable(divided)!r} is one class, and in a list {SEPARATOR} stands between several of an "
            f"image; rename its folder and extract again"
        )


def count_text(names: list[str], source_kind: str) -> str:
    """How many classes labels of these names stand for.

    >>> count_text(["sky|sea", "sea"], "csv"), count_text(["sky|sea", "sea"], "folder")
    ('2 classes in 2 combinations', '2 classes')
    """
    several = is_multilabel(names, source_kind)
    count = plural(len(classes_of(names, multilabel=several)), "class", "classes")
    return f"{count} in {plural(len(names), 'combination')}" if several else count


def classes_of(names: list[str], *, multilabel: bool) -> list[str]:
    """The classes behind labels of these names, in their order, or sorted if labels stand for several.

    >>> classes_of(["sky|sea", "sea", "sky | dog"], multilabel=True)
    ['dog', 'sea', 'sky']
    """
    if not multilabel:
        return names
    return in_order({part for name in names for part in _parts(name)})


def labels_among(classes: list[str], names: list[str], labels: npt.NDArray[np.integer], multilabel: bool) -> Labels:
    """Labels by the names of a file as labels by these classes.

    Args:
        labels: (N,) indices into `names`, -1 for none.
        multilabel: images can be of several classes.

    Returns:
        (N,) int32 indices into `classes`, -1 for none of them; or if `multilabel`, membership (N, K) of bool.

    >>> labels_among(["sea", "sky"], ["sky|sea", "sea", "dog"], np.array([0, 1, 2, -1]), multilabel=True).tolist()
    [[True, True], [True, False], [False, False], [False, False]]
    """
    index_of = {class_name(name): index for index, name in enumerate(classes)}
    if not multilabel:
        # The last entry is for label -1.
        table = np.array([*(index_of.get(class_name(name), -1) for name in names), -1], np.int32)
        found: Labels = table[labels]
        return found
    membership = np.zeros((len(names) + 1, len(classes)), bool)
    for row, name in enumerate(names):
        membership[row, [index_of[part] for part in _parts(name) if part in index_of]] = True
    of_rows: Labels = membership[labels]
    return of_rows


def _parts(name: str) -> list[str]:
    return [part for part in map(class_name, name.split(SEPARATOR)) if part]


def is_known(labels: Labels) -> npt.NDArray[np.bool_]:
    """(N,) whether rows belong to any of the classes, from `labels_among`."""
    return np.asarray(labels.any(axis=1) if labels.ndim == 2 else labels >= 0)


def values_among(names: list[str], labels: npt.NDArray[np.integer], where: str) -> npt.NDArray[np.float32]:
    """(N, K) numbers that labels are, written 1.5 or for several 1.5|20; NaN for label -1.

    Args:
        labels: (N,) indices into `names`, -1 for none.
        where: the source, for messages.

    Raises:
        LabelError: one is no number, or they are not equally many.

    >>> values_among(["1.5|2", "3|4"], np.array([1, 0, -1]), "photos.csv").tolist()
    [[3.0, 4.0], [1.5, 2.0], [nan, nan]]
    """
    rows: list[list[float]] = []
    for name in names:
        try:
            numbers = [float(part) for part in name.split(SEPARATOR)]
        except ValueError:
            numbers = []
        if not numbers or not np.isfinite(numbers).all():
            raise LabelError(f"{where}: the label {printable(name)!r} is no number; several are written 1.5|20")
        if rows and len(numbers) != len(rows[0]):
            raise LabelError(
                f"{where}: the label {printable(name)!r} has {len(numbers)} numbers and {printable(names[0])!r} "
                f"{len(rows[0])}; every image needs as many"
            )
        rows.append(numbers)
    width = len(rows[0]) if rows else 1
    table = np.array([*rows, [np.nan] * width], np.float32)
    found: npt.NDArray[np.float32] = table[labels]
    return found
