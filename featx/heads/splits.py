"""Which rows train a head and which test it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from featx.errors import LabelError

Rows = npt.NDArray[np.intp]


def copies_of(sha256: npt.NDArray[np.uint8]) -> Rows:
    """(n,) which rows are of the same bytes: the position of the first of them, from hashes (n, 32).

    A hash of zeros is that of no file: such rows are copies of none.
    """
    found: Rows = np.arange(len(sha256))
    known = np.flatnonzero(sha256.any(axis=1))
    if len(known):
        _, first, group = np.unique(sha256[known], axis=0, return_index=True, return_inverse=True)
        found[known] = known[first[group.reshape(-1)]]
    return found


def united(first: Rows, second: Rows) -> Rows:
    """(n,) which rows belong together where either says so, the first of them; both as `copies_of` gives them."""
    count = len(first)
    if np.array_equal(first, np.arange(count)):
        return second
    if np.array_equal(second, np.arange(count)):
        return first
    rows = np.arange(count)
    return joined(np.concatenate([np.stack([rows, first], 1), np.stack([rows, second], 1)]), count)


def joined(pairs: npt.NDArray[np.integer], count: int) -> Rows:
    """(n,) which rows a chain of pairs (P, 2) holds together: the first of them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return np.arange(count)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    parts = connected_components(graph, directed=False)[1]
    _, places, number = np.unique(parts, return_index=True, return_inverse=True)
    found: Rows = places[number]
    return found


def split_by_share(
    labels: npt.NDArray[np.int32], share: float, seed: int, copies: Rows | None = None
) -> tuple[Rows, Rows]:
    """Hold out a share of every class, chosen at random.

    Args:
        labels: (n,) class of every row.
        share: of each class, rounded to the nearest row; every class keeps at least one row for training.
        copies: (n,) from `copies_of` or `united`: rows that belong together come to the same side. Where such rows
            are of several classes, shares are as near as whole groups come.

    Returns:
        train, test: positions in `labels`, sorted.
    """
    if copies is not None and len(firsts := np.unique(copies)) < len(copies):
        if (labels != labels[copies]).any():
            return _split_groups_by_share(labels, share, seed, copies)
        train, test = split_by_share(labels[firsts], share, seed)
        return np.flatnonzero(np.isin(copies, firsts[train])), np.flatnonzero(np.isin(copies, firsts[test]))
    return _split_by_share(labels, share, seed)


def _split_groups_by_share(labels: npt.NDArray[np.int32], share: float, seed: int, groups: Rows) -> tuple[Rows, Rows]:
    """Hold out groups, in random order, that bring classes nearer to their shares and leave each rows to train."""
    names, number = np.unique(groups, return_inverse=True)
    number = number.reshape(-1)
    table = np.zeros((len(names), int(labels.max()) + 1), np.intp)  # rows of each class
    np.add.at(table, (number, labels), 1)
    total = table.sum(axis=0)
    lacking = np.floor(share * total + 0.5).astype(np.intp)
    left, held_out = total.copy(), np.zeros(len(names), bool)
    for group in np.random.default_rng(seed).permutation(len(names)).tolist():
        own = table[group]
        nearer = np.abs(lacking - own).sum() < np.abs(lacking).sum()
        if nearer and (left - own)[total > 0].all():
            held_out[group] = True
            left, lacking = left - own, lacking - own
    out = held_out[number]
    return np.flatnonzero(~out), np.flatnonzero(out)


def _split_by_share(labels: npt.NDArray[np.int32], share: float, seed: int) -> tuple[Rows, Rows]:
    generator = np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held_out = min(math.floor(share * len(rows) + 0.5), len(rows) - 1)
        test.append(rows[:held_out])
        train.append(rows[held_out:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def split_per_class(
    labels: npt.NDArray[np.int32],
    count: int,
    seed: int,
    classes: list[str],
    most: int | None = None,
    copies: Rows | None = None,
    groups: Rows | None = None,
) -> tuple[Rows, Rows]:
    """Train on `count` rows of every class, chosen at random; test on all others, or on at most `most` of a class.

    Args:
        copies: (n,) from `copies_of`: of rows of the same bytes only the first takes part.
        groups: (n,) from `united`: rows that belong together, of one class or several, train or test, but not both.

    Raises:
        LabelError: a class has fewer rows than that.
    """
    if copies is not None and len(firsts := np.unique(copies)) < len(copies):
        inside = None if groups is None else groups[firsts]
        train, test = split_per_class(labels[firsts], count, seed, classes, most, groups=inside)
        return firsts[train], firsts[test]
    if groups is not None and len(np.unique(groups)) < len(groups):
        return _split_groups_per_class(labels, count, seed, classes, most, groups)
    return _split_per_class(labels, count, seed, classes, most)


def _split_groups_per_class(
    labels: npt.NDArray[np.int32], count: int, seed: int, classes: list[str], most: int | None, groups: Rows
) -> tuple[Rows, Rows]:
    """Groups in random order train as long as a class of theirs lacks rows; the others test."""
    generator = np.random.default_rng(seed)
    names, number = np.unique(groups, return_inverse=True)
    number = number.reshape(-1)
    known, trained = np.zeros(int(labels.max()) + 1, np.intp), np.zeros(len(names), bool)
    for group in generator.permutation(len(names)).tolist():
        own = np.bincount(labels[number == group], minlength=len(known))
        if (known[own > 0] < count).any():
            trained[group], known = True, known + own
    train, test = [], []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        learnt, others = rows[trained[number[rows]]], rows[~trained[number[rows]]]
        if len(learnt) < count:
            raise LabelError(
                f"class {classes[label]!r} has {len(learnt)} usable images; --per-class {count} needs more"
            )
        train.append(learnt[:count])
        test.append(others if most is None else others[:most])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _split_per_class(
    labels: npt.NDArray[np.int32], count: int, seed: int, classes: list[str], most: int | None
) -> tuple[Rows, Rows]:
    generator = np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) < count:
            raise LabelError(
                f"class {classes[label]!r} has {len(rows)} usable images; --per-class {count} needs more"
            )
        train.append(rows[:count])
        test.append(rows[count:] if most is None else rows[count : count + most])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def first_of_class(train: Rows, labels: npt.NDArray[np.int32], count: int, seed: int) -> Rows:
    """`count` of the training rows of each class, chosen at random; of fewer images a part of those of more.

    Args:
        train: positions in `labels`, (n,) of all.
    """
    order = np.random.default_rng([seed, 1]).permutation(train)
    kept = [order[labels[order] == label][:count] for label in np.unique(labels[train])]
    return np.sort(np.concatenate(kept))


_TEST, _VAL = ("test", "testing"), ("val", "valid", "validation")


def split_by_name(
    split_of: npt.NDArray[np.int32], splits: list[str], *, choosing: bool = False
) -> tuple[Rows, Rows, str]:
    """The rows of the split called train, those of another one, and its name.

    Args:
        choosing: something is chosen by the other split: val, or test if there is no val. Otherwise a result is
            measured on it: test, or val if there is no test.

    Raises:
        LabelError: there is no split called train, or no other.
    """
    by_name = {name.lower(): index for index, name in enumerate(splits)}
    train = next((by_name[n] for n in ("train", "training") if n in by_name), None)
    held_out = (*_VAL, *_TEST) if choosing else (*_TEST, *_VAL)
    test = next((by_name[n] for n in held_out if n in by_name), None)
    if train is None or test is None:
        have = ", ".join(splits) or "none"
        raise LabelError(f"--split-column needs splits called train and test (or val); the file's splits: {have}")
    return np.flatnonzero(split_of == train), np.flatnonzero(split_of == test), splits[test]
