"""`featx verify`: recompute rows of a features file by another way, and compare.

The other way is torchvision's own, see `featx.extraction.reference`. The decoder is shared: what the bytes of an
image file mean is held by the tests, against values computed from its header.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from featx.errors import FileFormatError, PlanMismatch, SourceError, VerificationFailed
from featx.extraction.reference import Reference
from featx.images.bad_image import BadImage
from featx.images.decode import decode, pillow_settings
from featx.images.sources.read import read_file, read_member
from featx.options.extraction import VerifyConfig
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.text import printable, table
from featx.status import Decoder, Status
from featx.store.open import open_features
from featx.store.reader import Features

# Largest difference as a share of the layer's largest value. Float32 sums in another order differ by about 1e-6;
# bfloat16 has 8 bits of mantissa, TF32 and float16 have 11.
TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "fp16": 5e-3, "bf16": 3e-2}
FLOAT16_ROUNDING = 2**-11
# On top for rows whose pixels are not Pillow's: a level or two off, nvJPEG's more where colours meet.
DECODER_DISTANCE = {Decoder.PILLOW: 0.0, Decoder.NVJPEG: 5e-2, Decoder.FAST: 3e-2}


@dataclass(frozen=True)
class LayerCheck:
    """How far a layer's stored rows are from the recomputed ones.

    Attributes:
        difference: largest absolute difference, as a share of the layer's largest recomputed value.
        worst: the image it was found in.
        decoder: what made the pixels of the rows compared.
    """

    layer: str
    difference: float
    tolerance: float
    worst: str
    decoder: str = Decoder.PILLOW.name

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class VerifyReport(Report):
    """The outcome of a verification."""

    path: Path
    rows: int
    images: int
    layers: list[LayerCheck]

    @property
    def passed(self) -> bool:
        return all(layer.passed for layer in self.layers)

    def lines(self) -> list[str]:
        rows = [
            [
                c.layer if c.decoder == Decoder.PILLOW.name else f"{c.layer}, by {Decoder[c.decoder].title}",
                f"{c.difference:.1e}",
                f"{c.tolerance:.1e}",
                "ok" if c.passed else "DIFFERS",
                c.worst,
            ]
            for c in self.layers
        ]
        return [
            f"{self.path}: {self.rows} of {self.images:,} rows recomputed one by one with PyTorch and "
            f"torchvision alone",
            *table(["layer", "difference", "allowed", "", "largest in"], rows),
        ]


def verify_file(
    path: str | os.PathLike[str], config: VerifyConfig | None = None, *, reporter: Reporter = SILENT
) -> VerifyReport:
    """Recompute rows chosen at random and compare them with the file.

    Raises:
        VerificationFailed: a layer differs by more than rounding can explain; its text holds the report.
        PlanMismatch: an image has changed since the extraction.
        WeightsMismatch: the weights are not the ones the file was made with.
    """
    config, features = config or VerifyConfig(), open_features(path)
    made = features.provenance
    done = np.flatnonzero(features.status == Status.DONE)
    if not len(done):
        raise FileFormatError(f"{path} holds no successful image, so there is nothing to verify")
    chosen = np.sort(np.random.default_rng(config.seed).permutation(done)[: config.rows])
    reference = Reference(made, config.weights, reporter.download)
    load = _image_loader(features, config.source)
    largest = dict.fromkeys(features, 0.0)
    decoders = [Decoder(found) for found in np.unique(features.decoder[chosen])]
    difference = {(name, decoder): (0.0, "") for name in features for decoder in decoders}
    reporter.begin("verify", len(chosen))
    with pillow_settings(), torch.inference_mode():
        for row in chosen:
            expected = reference(load(int(row)))
            for name in features:
                values, stored = expected[name].numpy(), np.asarray(features[name][row], np.float32)
                if values.shape != stored.shape:
                    raise VerificationFailed(f"{path}: {name} has rows of {stored.shape}, recomputed {values.shape}")
                largest[name] = max(largest[name], float(np.abs(values).max()))
                gap = float(np.abs(values - stored).max())
                gap = gap if np.isfinite(gap) else float("inf")
                where = name, Decoder(features.decoder[row])
                difference[where] = max(difference[where], (gap, printable(features.paths[row])))
            reporter.advance(1)
    reporter.end()
    report = VerifyReport(
        path=features.path,
        rows=len(chosen),
        images=len(features),
        layers=[
            LayerCheck(name, gap / (largest[name] or 1.0), _tolerance(made, decoder), worst, decoder.name)
            for (name, decoder), (gap, worst) in difference.items()
        ],
    )
    if not report.passed:
        raise VerificationFailed(f"{path} does not hold what it says it holds\n{report}")
    return report


def _tolerance(made: dict[str, Any], decoder: Decoder) -> float:
    extra = FLOAT16_ROUNDING if made["dtype"] == "float16" else 0.0
    extra += DECODER_DISTANCE[decoder]
    return TOLERANCE[made["precision"]] + extra


def _image_loader(features: Features, moved_to: str | None) -> Callable[[int], Image.Image]:
    """Row -> RGB image, after comparing the file's hash with the one stored."""
    made = features.provenance
    place = Path(moved_to or made["source"]["path"])
    if not place.exists():
        raise SourceError(f"{place} is not there; if the images have moved, say where with --source")
    is_zip = made["source"]["kind"] == "zip"
    try:
        archive = zipfile.ZipFile(place) if is_zip else None
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{place} cannot be read as a zip: {error}") from error
    root = place if made["source"]["kind"] == "folder" else place.parent

    def load(row: int) -> Image.Image:
        name = features.paths[row]
        try:
            content = read_member(archive, name) if archive else read_file(root / name)
        except BadImage as bad:
            raise SourceError(f"{printable(name)}: {bad}; if the images have moved, use --source") from bad
        if hashlib.sha256(content).digest() != features.sha256[row].tobytes():
            raise PlanMismatch(f"{printable(name)} has changed since its features were extracted; extract again")
        try:
            return decode(content, exif=made["exif"])[0]
        except BadImage as bad:
            raise PlanMismatch(f"{printable(name)}: {bad}; the file says its features were extracted") from bad

    return load
