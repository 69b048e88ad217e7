"""`featx inspect`: what is inside a features file, and whether anything in it looks wrong."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.images.preprocess import Preprocess
from featx.runtime.report import Report
from featx.runtime.text import format_bytes, plural, printable, table
from featx.status import Decoder, Failure, Status
from featx.store.open import open_features
from featx.store.reader import Features, flat_rows
from featx.store.self_check import changed_since_made

BLOCK_BYTES = 64 << 20
SHOWN_FAILURES = 10


@dataclass(frozen=True)
class LayerHealth:
    """What the values of one layer look like over the successful images.

    Attributes:
        zero_columns, constant_columns: values that are 0, or the same, for every image (zero ones not counted
            twice).
        nan_rows: successful images with a NaN or infinite value: must be 0.
        zeros: share of all values that are exactly 0.
    """

    layer: str
    node: str
    relu: str
    pooling: str
    shape: tuple[int, ...]
    dtype: str
    least: float
    greatest: float
    mean: float
    zeros: float
    zero_columns: int
    constant_columns: int
    nan_rows: int


@dataclass(frozen=True)
class InspectReport(Report):
    """What a features file holds."""

    path: Path
    complete: bool
    bytes: int
    images: int
    done: int
    pending: int
    failed: dict[str, int]
    failures: list[Failure]
    classes: dict[str, int]
    unlabelled: int
    splits: dict[str, int]
    turned: int
    by_other_decoders: dict[str, int]
    layers: list[LayerHealth]
    provenance: dict[str, Any]
    fingerprint: str
    changed: str

    def lines(self) -> list[str]:
        made = self.provenance
        state = "complete" if self.complete else f"NOT FINISHED, {plural(self.pending, 'image')} pending"
        text = [
            f"{self.path}: {state}; {plural(self.images, 'image')}, {self.done:,} done, {format_bytes(self.bytes)}",
            f"made by {made['command']}",
            f"from {printable(made['source']['path'])} with {made['backbone']}, weights {made['weights']['name']} "
            f"(sha256 {made['weights']['sha256'][:12]}), {made['precision']} on {made['hardware']}, "
            f"{made['versions']['decoder']}, torch {made['versions']['torch']}",
            f"preprocessing: {_preprocessing(made)}",
        ]
        if reduced := made.get("reduction"):
            each = ", ".join(f"{name} from {one['values']:,} values" for name, one in reduced["layers"].items())
            fitted = f" of {plural(reduced['sample'], 'image')}" if reduced["sample"] else f", seed {reduced['seed']}"
            text.append(f"reduced by {reduced['method']}:{reduced['components']}{fitted}: {each}")
        if self.changed:
            text.append(f"CHANGED since it was made: {self.changed}")
        if self.classes:
            sizes = sorted(self.classes.values())
            text.append(f"{plural(len(self.classes), 'class', 'classes')} of {sizes[0]:,} to {sizes[-1]:,} images")
        if self.unlabelled:
            text.append(f"{plural(self.unlabelled, 'image')} without a label")
        if self.splits:
            text.append("splits: " + ", ".join(f"{name} {count:,}" for name, count in self.splits.items()))
        if self.turned:
            text.append(f"{plural(self.turned, 'image')} with an EXIF orientation other than upright")
        for title, count in self.by_other_decoders.items():
            text.append(f"{plural(count, 'image')} decoded by {title}, not by {made['versions']['decoder']}")
        text += self._layer_lines() + self._failure_lines()
        return text

    def _layer_lines(self) -> list[str]:
        header = [
            "layer",
            "shape",
            "type",
            "ReLU",
            "least",
            "mean",
            "greatest",
            "zeros",
            "0-cols",
            "const",
            "NaN rows",
        ]
        rows = [
            [
                layer.layer,
                "x".join(map(str, layer.shape)),
                layer.dtype,
                layer.relu,
                f"{layer.least:.4g}",
                f"{layer.mean:.4g}",
                f"{layer.greatest:.4g}",
                f"{layer.zeros:.0%}",
                layer.zero_columns,
                layer.constant_columns,
                layer.nan_rows,
            ]
            for layer in self.layers
        ]
        return table(header, rows, left=4)

    def _failure_lines(self) -> list[str]:
        lines = [f"failed: {count:,} {kind}" for kind, count in self.failed.items()]
        lines += [f"  row {f.row}: {printable(f.path)}: {f.reason}" for f in self.failures[:SHOWN_FAILURES]]
        if len(self.failures) > SHOWN_FAILURES:
            lines.append(f"  and {len(self.failures) - SHOWN_FAILURES:,} more (--json lists all)")
        return lines


def _preprocessing(made: dict[str, Any]) -> str:
    how = Preprocess.from_values(made["preprocess"]).describe()
    return f"{how}; EXIF orientation {'applied' if made['exif'] else 'ignored'}"


def inspect_file(path: str | os.PathLike[str]) -> InspectReport:
    """Provenance, counts, failures, and columns or rows that look wrong; also of an unfinished file.

    Raises:
        FileFormatError: it is not a features file.
    """
    features = open_features(path, partial=True, check=False)
    done = np.flatnonzero(features.status == Status.DONE)
    return InspectReport(
        path=features.path,
        complete=features.complete,
        bytes=features.path.stat().st_size,
        images=len(features),
        done=len(done),
        pending=features.count(Status.PENDING),
        failed=_failed_by_kind(features),
        failures=features.failures(),
        classes=_counts(features.labels, features.classes),
        unlabelled=int((features.labels < 0).sum()),
        splits=_counts(features.split_of, features.splits),
        turned=int((features.orientation > 1).sum()),
        by_other_decoders={
            decoder.title: int((features.decoder == decoder).sum())
            for decoder in Decoder
            if decoder is not Decoder.PILLOW and (features.decoder == decoder).any()
        },
        layers=[layer_health(features, name, done) for name in features],
        provenance=features.provenance,
        fingerprint=features.fingerprint,
        changed=changed_since_made(features),
    )


def _failed_by_kind(features: Features) -> dict[str, int]:
    kinds = Counter(Status(int(s)).name.lower().replace("_", " ") for s in features.status if s > Status.DONE)
    return dict(kinds)


def _counts(index: npt.NDArray[np.int32], names: list[str]) -> dict[str, int]:
    counts = np.bincount(index[index >= 0], minlength=len(names))
    return {printable(name): int(count) for name, count in zip(names, counts, strict=True)}


def layer_health(features: Features, layer: str, rows: npt.NDArray[np.intp]) -> LayerHealth:
    """Go once through the given rows of a layer, in blocks of 64 MB."""
    spec, values = features.layers[layer], features[layer]
    flat = flat_rows(values)
    width = flat.shape[1]
    least = np.full(width, np.inf, np.float32)
    greatest = np.full(width, -np.inf, np.float32)
    total, zeros, nan_rows = 0.0, 0, 0
    step = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, len(rows), step):
        block = np.asarray(flat[rows[start : start + step]], np.float32)
        bad = ~np.isfinite(block).all(axis=1)
        nan_rows += int(bad.sum())
        block = block[~bad]
        if len(block):
            np.minimum(least, block.min(axis=0), out=least)
            np.maximum(greatest, block.max(axis=0), out=greatest)
            total += float(block.sum(dtype=np.float64))
            zeros += int((block == 0).sum())
    good = len(rows) - nan_rows
    same, zero = least == greatest, (least == 0) & (greatest == 0)
    return LayerHealth(
        layer=layer,
        node=spec.node,
        relu=spec.relu,
        pooling=spec.pooling,
        shape=spec.shape,
        dtype=spec.dtype,
        least=float(least.min()) if good else float("nan"),
        greatest=float(greatest.max()) if good else float("nan"),
        mean=total / (good * width) if good else float("nan"),
        zeros=zeros / (good * width) if good else float("nan"),
        zero_columns=int(zero.sum()) if good else 0,
        constant_columns=int((same & ~zero).sum()) if good > 1 else 0,
        nan_rows=nan_rows,
    )
