"""What a features file can prove by itself, without its images and its network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from featx.errors import FileFormatError
from featx.runtime.text import printable
from featx.status import Status
from featx.store.checksums import (
    GROUP,
    IMAGE_FIELDS,
    STATIC_FIELDS,
    checksums_of_images,
    checksums_of_rows,
    static_checksum,
)
from featx.store.extents import READ_ERRORS
from featx.store.reader import Features, flat_rows
from featx.store.schema import attributes_of, essence

_BYTES_AT_ONCE = 64 << 20


@dataclass(frozen=True)
class SelfCheck:
    """One thing a file says twice.

    Attributes:
        name: what is compared.
        found: what is wrong; empty if nothing is.
    """

    name: str
    found: str = ""

    @property
    def passed(self) -> bool:
        return not self.found


def check_itself(features: Features, advance: Callable[[int], None] = lambda rows: None) -> list[SelfCheck]:
    """Every check; all rows are read once.

    Args:
        advance: is told of rows as they are read.
    """
    try:
        checks = [_fingerprint(features), _attributes(features)]
        if features.schema > 1:
            checks += [_static(features), _images(features)]
    except READ_ERRORS as error:
        reason = printable(" ".join(str(error).split()))
        raise FileFormatError(f"{features.path} is damaged: {reason}") from error
    return checks + [check for layer in features for check in _rows(features, layer, advance)]


def changed_since_made(features: Features) -> str:
    """What of provenance, names, labels and splits was changed since the file was made; empty if nothing was."""
    try:
        checks = [_fingerprint(features), *([_static(features)] if features.schema > 1 else [])]
    except READ_ERRORS as error:
        reason = printable(" ".join(str(error).split()))
        raise FileFormatError(f"{features.path} is damaged: {reason}") from error
    return "; ".join(f"{check.name}: {check.found}" for check in checks if not check.passed)


def _fingerprint(features: Features) -> SelfCheck:
    now = hashlib.sha256(json.dumps(essence(features.provenance), sort_keys=True).encode()).hexdigest()
    same = now == features.fingerprint
    return SelfCheck("fingerprint", "" if same else "it is not that of the provenance: one of them was changed")


def _attributes(features: Features) -> SelfCheck:
    """The attributes of the layers against the provenance and the arrays."""
    wrong = []
    made = features.provenance
    with h5py.File(features.path, "r", locking=False) as file:
        for name, spec in features.layers.items():
            said = made["layers"].get(name)
            shape = [int(length) for length in np.atleast_1d(file[f"features/{name}"].attrs["shape"])]
            pooled = spec.pooling in (made["pooling"], "none")
            if said is None or (said["node"], said.get("relu", spec.relu)) != (spec.node, spec.relu) or not pooled:
                wrong.append(f"{name}: its attributes are not those of the provenance")
            elif shape != list(spec.shape):
                wrong.append(f"{name}: its attribute says {tuple(shape)}, its rows are {spec.shape}")
            elif spec.dtype != made["dtype"]:
                wrong.append(f"{name}: its rows are {spec.dtype}, the provenance says {made['dtype']}")
    missing = [name for name in made["layers"] if name not in features.layers]
    wrong += [f"{name} is in the provenance and not in the file" for name in missing]
    return SelfCheck("attributes", "; ".join(printable(text) for text in wrong[:3]))


def _static(features: Features) -> SelfCheck:
    names = [*STATIC_FIELDS, *([GROUP] if GROUP in features.datasets else [])]
    fields = {name: features.array(name) for name in names}
    attributes = {name: attributes_of(spec) for name, spec in features.layers.items()}
    now = static_checksum(fields, features.provenance, attributes)
    same = now == int(features.array("checksums/static")[0])
    return SelfCheck("names, labels, splits, provenance", "" if same else "they do not match their checksum")


def _images(features: Features) -> SelfCheck:
    now = checksums_of_images({name: features.array(name) for name in IMAGE_FIELDS})
    stored = features.checksums("images")
    wrong = np.flatnonzero((features.status != Status.PENDING) & (now != stored))
    return SelfCheck("status, hash, orientation, decoder, reason", _rows_text(features, wrong))


def _rows(features: Features, layer: str, advance: Callable[[int], None]) -> list[SelfCheck]:
    """The rows of a layer against their checksums, and against what the status says of them."""
    values, stored = features[layer], features.checksums(layer)
    at_once = max(1, _BYTES_AT_ONCE // max(1, values[:1].nbytes))
    changed: list[npt.NDArray[np.intp]] = []
    untrue: list[npt.NDArray[np.intp]] = []
    for start in range(0, len(values), at_once):
        rows = np.asarray(values[start : start + at_once])
        status = features.status[start : start + at_once]
        if stored is not None:
            wrong = (checksums_of_rows(rows) != stored[start : start + at_once]) & (status != Status.PENDING)
            changed.append(start + np.flatnonzero(wrong))
        flat = flat_rows(rows)
        whole, empty = np.isfinite(flat).all(axis=1), np.isnan(flat).all(axis=1)
        lies = ((status == Status.DONE) & ~whole) | ((status > Status.DONE) & ~empty)
        untrue.append(start + np.flatnonzero(lies))
        advance(len(rows))
    checks = [SelfCheck(f"{layer}: values and status", _rows_text(features, _joined(untrue)))]
    if stored is not None:
        checks.insert(0, SelfCheck(f"{layer}: checksums", _rows_text(features, _joined(changed))))
    return checks


def _joined(parts: list[npt.NDArray[np.intp]]) -> npt.NDArray[np.intp]:
    return np.concatenate([np.zeros(0, np.intp), *parts])


def _rows_text(features: Features, wrong: npt.NDArray[np.intp]) -> str:
    if not len(wrong):
        return ""
    first = int(wrong[0])
    return f"{len(wrong):,} of {len(features):,} rows differ (first: row {first}, {printable(features.paths[first])})"
