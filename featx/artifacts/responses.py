"""Responses to images, from the files that laboratories keep them in."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from featx.errors import FileFormatError, SourceError, UsageError
from featx.images.sources.dataset import is_dataset, split_dataset
from featx.runtime.files import is_hdf5, refuse_special_file
from featx.runtime.text import plural, printable
from featx.status import Status
from featx.store.reader import Features

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Responses:
    """Of n images to be predicted.

    Attributes:
        rows: (n,) of the features file.
        values: (k, n, R), k repeats.
        names: R.
        left_out: images of the file without responses, or that failed.
    """

    rows: npt.NDArray[np.intp]
    values: Floats
    names: list[str]
    left_out: int


def read_responses(path: Path, features: Features) -> Responses:
    """Read .npy or FILE.h5[:/NAME] with (N, R) or (repeats, N, R) in the rows of the features, or a CSV by path.

    A CSV has a column `path` and one for each response; an image's several lines are repeats.

    Raises:
        UsageError: they do not fit the features, or are not finite.
        FileFormatError: the file cannot be read.
    """
    known = np.flatnonzero(features.status == Status.DONE)
    if path.suffix.lower() in (".csv", ".tsv"):
        rows, values, names = _read_csv(path, features)
        kept = np.isin(rows, known)
        rows, values = rows[kept], values[:, kept]
    else:
        whole = _read_array(path)
        if whole.ndim not in (2, 3) or not whole.size or whole.shape[-2] != len(features):
            raise UsageError(
                f"{path} holds an array of shape {whole.shape}; {features.path} has {len(features)} images, so "
                f"({len(features)}, responses) or (repeats, {len(features)}, responses) is needed"
            )
        rows, values = known, (whole if whole.ndim == 3 else whole[None])[:, known]
        names = [f"response{number}" for number in range(whole.shape[-1])]
    if not values.size:
        raise UsageError(f"{path} holds no responses to images of {features.path}")
    if not np.isfinite(values).all():
        repeat, image, response = np.argwhere(~np.isfinite(values))[0].tolist()
        raise UsageError(
            f"{path}: {printable(names[response])} of {printable(features.paths[int(rows[image])])} is "
            f"{values[repeat, image, response]}; every response must be a finite number"
        )
    return Responses(rows, np.ascontiguousarray(values, np.float64), names, len(features) - len(rows))


def _read_array(path: Path) -> Floats:
    try:
        if is_dataset(path) or is_hdf5(path):
            return _read_dataset(path)
        refuse_special_file(path)
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileFormatError(f"no file {path}") from None
    except (OSError, ValueError, EOFError, SourceError) as error:
        raise FileFormatError(
            f"{path} cannot be read as .npy, .h5 or .csv: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(found, np.ndarray):
        raise FileFormatError(f"{path} holds several arrays; write one as .npy")
    return _numbers(found, str(path))


def _read_dataset(path: Path) -> Floats:
    file, name = split_dataset(path) if is_dataset(path) else (path, "")
    with h5py.File(file, "r", locking=False) as opened:
        if not name:
            arrays: list[str] = []
            opened.visititems(lambda one, what: arrays.append(one) if isinstance(what, h5py.Dataset) else None)
            if len(arrays) != 1:
                shown = ", ".join(arrays[:5]) or "nothing"
                raise FileFormatError(f"{path} holds {shown}; say which: {path}:/NAME")
            name = arrays[0]
        if name not in opened or not isinstance(opened[name], h5py.Dataset):
            raise FileFormatError(f"{file} has no dataset {name}")
        return _numbers(opened[name][()], str(path))


def _numbers(found: npt.NDArray[np.generic], where: str) -> Floats:
    if found.dtype.kind not in "fiu":
        raise FileFormatError(f"{where} holds {found.dtype} and no numbers")
    return np.asarray(found, np.float64)


def _read_csv(path: Path, features: Features) -> tuple[npt.NDArray[np.intp], Floats, list[str]]:
    row_of: dict[str, int] = {}
    for row, name in enumerate(features.paths):
        row_of.setdefault(name, row)
    found: dict[int, list[list[float]]] = {}
    try:
        refuse_special_file(path)
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            columns = next(reader, [])
            if "path" not in columns or len(columns) < 2:
                raise FileFormatError(f"{path}, line 1: needed are a column path and one for each response")
            place = columns.index("path")
            for line in reader:
                if not line:
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(line) != len(columns):
                    raise FileFormatError(f"{where}: {len(line)} fields, and there are {len(columns)} columns")
                if line[place] not in row_of:
                    raise UsageError(f"{where}: {features.path} has no image {printable(line[place])}")
                try:
                    numbers = [float(value) for number, value in enumerate(line) if number != place]
                except ValueError as error:
                    raise FileFormatError(f"{where}: {error}") from None
                found.setdefault(row_of[line[place]], []).append(numbers)
    except FileNotFoundError:
        raise FileFormatError(f"no file {path}") from None
    except csv.Error as error:
        raise FileFormatError(f"{path} is no CSV: {error}") from error
    if not found:
        raise UsageError(f"{path} names no image")
    counts = {len(lines) for lines in found.values()}
    if len(counts) > 1:
        raise UsageError(
            f"{path}: some images have {plural(min(counts), 'line')} and others {max(counts)}; every image needs as "
            f"many repeats"
        )
    rows = np.array(sorted(found), np.intp)
    values = np.array([found[row] for row in rows.tolist()], np.float64).reshape(len(rows), -1, len(columns) - 1)
    return rows, values.transpose(1, 0, 2), [name for name in columns if name != "path"]
