"""How much the images of each class count: all the same, balanced, or as a file says."""

from __future__ import annotations

import csv
import hashlib
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.errors import UsageError
from featx.runtime.files import disk_errors, refuse_special_file
from featx.runtime.text import class_name, printable

BALANCED = "balanced"
COLUMNS = ["class", "weight"]
_LEAST, _MOST = 1e-4, 1e4


def class_weights_of(
    given: str | None, labels: npt.NDArray[np.integer], classes: list[str]
) -> npt.NDArray[np.float64] | None:
    """(K,) factors on the loss of the images of each class, or None for no weights.

    Args:
        given: None; "balanced", n / (K n_k) as scikit-learn has it; or a CSV file with the columns class,weight.
        labels: (n,) of the images to train on.

    Raises:
        UsageError: the file is not such a table, or not of these classes.
    """
    if given is None:
        return None
    if given == BALANCED:
        counts = np.bincount(labels, minlength=len(classes))
        return len(labels) / (len(classes) * np.maximum(counts, 1).astype(np.float64))
    return _read(Path(given), classes)


def recorded_weights(given: str | None) -> str | None:
    """What a plan keeps of the option: of a file its contents' hash."""
    if given is None or given == BALANCED:
        return given
    return f"sha256 {hashlib.sha256(_bytes(Path(given))).hexdigest()}"


def _bytes(path: Path) -> bytes:
    try:
        refuse_special_file(path)
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"--class-weight is {str(path)!r}; it can be balanced or a CSV file with the columns class,weight"
        ) from None
    except OSError:
        with disk_errors(path):
            raise


def _read(path: Path, classes: list[str]) -> npt.NDArray[np.float64]:
    try:
        lines = list(csv.reader(_bytes(path).decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--class-weight {path}: it is no CSV file of UTF-8 text ({error})") from None
    if not lines or [name.strip() for name in lines[0]] != COLUMNS:
        raise UsageError(f"--class-weight {path}: its first line must be class,weight")
    found: dict[str, float] = {}
    for number, row in enumerate(lines[1:], start=2):
        if not row:
            continue
        try:
            name, weight = row[0], float(row[1]) if len(row) == 2 else math.nan
        except ValueError:
            name, weight = row[0], math.nan
        if not _LEAST <= weight <= _MOST:
            raise UsageError(
                f"--class-weight {path}, line {number}: {printable(','.join(row))!r}; a class and a weight from "
                f"{_LEAST:g} to {_MOST:g}"
            )
        name = class_name(name)
        if name in found:
            raise UsageError(f"--class-weight {path}, line {number}: class {printable(name)!r} is there twice")
        found[name] = weight
    for names, words in (
        ([name for name in classes if name not in found], "has no weight for class"),
        ([name for name in found if name not in classes], "names what is no class to train on:"),
    ):
        if names:
            more = f" and {len(names) - 1} others" if len(names) > 1 else ""
            raise UsageError(f"--class-weight {path} {words} {printable(names[0])!r}{more}")
    return np.array([found[name] for name in classes])
