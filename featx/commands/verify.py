"""`featx verify`: check what a features file says twice, recompute rows by another way, and compare.

The other way is torchvision's own, see `featx.extraction.reference`. The decoder is shared: what the bytes of an
image file mean is held by the tests, against values computed from its header.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from featx.errors import FileFormatError, PlanMismatch, SourceError, VerificationFailed
from featx.extraction.reduction.projection import reduction_of
from featx.extraction.reference import Reference
from featx.images.bad_image import BadImage
from featx.images.decode import decode, pillow_settings
from featx.images.manifest import Manifest
from featx.images.sources.containers import open_container, root_of
from featx.images.sources.remote import url_of
from featx.images.sources.scan import scan
from featx.networks.run_folder import is_run
from featx.options.extraction import VerifyConfig
from featx.options.without_effect.rule import Facts
from featx.options.without_effect.rules import notes_on
from featx.runtime.files import is_hdf5
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.text import class_name, printable, table
from featx.status import Decoder, Status
from featx.store.open import open_features
from featx.store.reader import Features
from featx.store.self_check import SelfCheck, check_itself
from featx.verification.models import ModelReport, verify_head, verify_run

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
    """The outcome of a verification.

    Attributes:
        checks: what the file says twice, and what the source says of its labels.
        schema: of the file; 1 has no checksums.
        seed: of the choice of rows.
        layers: recomputed rows against those of the file; none if `checks` failed already.
    """

    path: Path
    rows: int
    images: int
    layers: list[LayerCheck]
    checks: list[SelfCheck]
    schema: int
    seed: int

    @property
    def passed(self) -> bool:
        return all(layer.passed for layer in self.layers) and all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        failed = [check for check in self.checks if not check.passed]
        text = [f"{self.path}: {check.name}: {check.found}" for check in failed]
        if not failed:
            rows = f"all {self.images:,} rows match their checksums" if self.schema > 1 else "NO checksums (schema 1)"
            text.append(f"{self.path}: {rows}; fingerprint, names, labels and attributes agree")
        if not self.layers:
            return text
        rows_of_table = [
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
            *text,
            f"{self.rows:,} of {self.images:,} rows recomputed one by one with PyTorch and torchvision alone "
            f"(--seed {self.seed})",
            *table(["layer", "difference", "allowed", "", "largest in"], rows_of_table),
        ]


def verify_file(
    path: str | os.PathLike[str], config: VerifyConfig | None = None, *, reporter: Reporter = SILENT
) -> VerifyReport | ModelReport:
    """Check all that a features file says twice, recompute rows chosen at random, and compare them with the file.

    A head or the folder of a fine-tuned network is loaded, compared with its hash, and measured again where
    `config.source` names the features or images it was made from.

    Raises:
        VerificationFailed: something differs by more than rounding can explain; its text holds the report.
        PlanMismatch: an image has changed since the extraction.
        WeightsMismatch: the weights are not the ones the file was made with.
    """
    config = config or VerifyConfig()
    if is_run(str(path)):
        reporter.notes(notes_on(config, Facts(model="run")))
        return verify_run(Path(path), config, reporter)
    if Path(path).suffix == ".safetensors" and not is_hdf5(Path(path)):
        reporter.notes(notes_on(config, Facts(model="head")))
        return verify_head(Path(path), config, reporter)
    features = open_features(path, check=False)
    if not isinstance(features, Features):
        raise FileFormatError(f"{path} are several files; verify them one by one")
    reporter.notes(notes_on(config, Facts()))
    seed = secrets.randbits(32) if config.seed is None else config.seed
    reporter.begin("check rows", len(features) * len(features.layers))
    checks = check_itself(features, reporter.advance)
    reporter.end()
    checks += [_manifest_check(features), *_source_checks(features, config, reporter)]
    failed = [check for check in checks if not check.passed]
    if averaged := features.provenance.get("averaged"):
        reporter.note(f"note: its rows are means of {averaged['rows']:,} others; verify the file they were made from")
    report = VerifyReport(features.path, 0, len(features), [], checks, features.schema, seed)
    if not failed and not averaged:
        rows, layers, said = _recompute(features, config, seed, reporter)
        report = replace(report, rows=rows, layers=layers, checks=[*checks, said])
    if not report.passed:
        raise VerificationFailed(f"{path} does not hold what it says it holds\n{report}")
    return report


def _manifest_check(features: Features) -> SelfCheck:
    """The names, labels, splits and groups against the digest in the provenance."""
    source = features.provenance["source"]
    place = Path(source["path"])
    manifest = Manifest(
        source["kind"], place, place, tuple(features.raw_paths), tuple(features.labels.tolist()),
        tuple(features.classes), tuple(features.split_of.tolist()), tuple(features.splits), tuple(features.groups),
    )  # fmt: skip
    same = manifest.digest == features.provenance["images"]
    return SelfCheck(
        "images", "" if same else "paths, labels, splits or groups do not have the hash that the provenance says"
    )


def _source_checks(features: Features, config: VerifyConfig, reporter: Reporter) -> list[SelfCheck]:
    """The labels against the source, where it is there and is still read as it was."""
    place = Path(config.source or features.provenance["source"]["path"])
    try:
        manifest = scan(place) if features.source_kind != "stdin" else None
    except (SourceError, OSError):
        manifest = None
    if manifest is None or manifest.kind != features.provenance["source"]["kind"]:
        return []
    now = {
        path: "" if label < 0 else manifest.classes[label]
        for path, label in zip(manifest.paths, manifest.labels, strict=True)
    }
    names = [*features.classes, ""]
    wrong = [
        path
        for path, label in zip(features.raw_paths, features.labels, strict=True)
        if path in now and class_name(names[label]) != now[path]
    ]
    if not wrong:
        return [SelfCheck("labels of the source")]
    return [
        SelfCheck(
            "labels of the source",
            f"{len(wrong):,} differ from {printable(str(place))} (first: {printable(wrong[0])})",
        )
    ]


def _recompute(
    features: Features, config: VerifyConfig, seed: int, reporter: Reporter
) -> tuple[int, list[LayerCheck], SelfCheck]:
    path, made = features.path, features.provenance
    done = np.flatnonzero(features.status == Status.DONE)
    if not len(done):
        raise FileFormatError(f"{path} holds no successful image, so there is nothing to verify")
    few = np.sort(np.random.default_rng(seed).permutation(done)[: config.rows])
    chosen = done if config.all else few
    reference = Reference(made, config.weights_file, reporter.download)
    said = SelfCheck("layers", reference.differing_layers(features.layers))
    load = _image_loader(features, config.source)
    reduction = reduction_of(features)
    largest = dict.fromkeys(features, 0.0)
    decoders = [Decoder(found) for found in np.unique(features.decoder[chosen])]
    difference = {(name, decoder): (0.0, "") for name in features for decoder in decoders}
    reporter.begin("verify", len(chosen))
    with pillow_settings(), torch.inference_mode():
        for row in chosen:
            expected = reference(load(int(row)))
            for name in features:
                values, stored = expected[name].numpy(), np.asarray(features[name][row], np.float32)
                if reduction is not None:
                    values = reduction.layers[name].exactly(values[None])[0]
                if values.shape != stored.shape:
                    raise VerificationFailed(f"{path}: {name} has rows of {stored.shape}, recomputed {values.shape}")
                largest[name] = max(largest[name], float(np.abs(values).max()))
                gap = float(np.abs(values - stored).max())
                gap = gap if np.isfinite(gap) else float("inf")
                where = name, Decoder(features.decoder[row])
                difference[where] = max(difference[where], (gap, printable(features.paths[row])))
            reporter.advance(1)
    reporter.end()
    layers = [
        LayerCheck(
            name, gap / (largest[name] or 1.0),
            _tolerance(made, decoder) if config.tolerance is None else config.tolerance, worst, decoder.name,
        )
        for (name, decoder), (gap, worst) in difference.items()
    ]  # fmt: skip
    return len(chosen), layers, said


def _tolerance(made: dict[str, Any], decoder: Decoder) -> float:
    extra = FLOAT16_ROUNDING if made["dtype"] == "float16" else 0.0
    extra += DECODER_DISTANCE[decoder]
    return TOLERANCE[made["precision"]] + extra


def _image_loader(features: Features, moved_to: str | None) -> Callable[[int], Image.Image]:
    """Row -> RGB image, after comparing the file's hash with the one stored."""
    made = features.provenance
    place = Path(moved_to or made["source"]["path"])
    kind = made["source"]["kind"]
    if (
        kind not in ("tar", "hdf5", "remote", "video")
        and url_of(place) is None
        and not (place.is_dir() or place.is_file())
    ):
        what = "is neither a folder nor a file" if place.exists() else "is not there"
        raise SourceError(f"{place} {what}; if the images have moved, say where with --source")
    try:
        container = open_container(kind, root_of(kind, place))
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{place} cannot be read as a {kind}: {error}; if the images have moved, use --source"
        ) from error

    def load(row: int) -> Image.Image:
        name = features.paths[row]
        try:
            content = container.read(features.raw_paths[row])
        except BadImage as bad:
            raise SourceError(f"{printable(name)}: {bad}; if the images have moved, use --source") from bad
        if hashlib.sha256(content).digest() != features.sha256[row].tobytes():
            raise PlanMismatch(f"{printable(name)} has changed since its features were extracted; extract again")
        try:
            return decode(content, exif=made["exif"])[0]
        except BadImage as bad:
            raise PlanMismatch(f"{printable(name)}: {bad}; the file says its features were extracted") from bad

    return load
