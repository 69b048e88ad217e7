"""`featx verify`: recompute rows of a features file by another way, and compare.

The other way is torchvision's own: its unmodified network, its own transforms, one image at a time, values copied
by a hook the moment they are computed. No tracing, no batches, no pooling code of featx.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision import transforms as T
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.transforms._presets import ImageClassification

from featx.errors import FileFormatError, PlanMismatch, SourceError, VerificationFailed, WeightsMismatch
from featx.images.decode import BadImage, open_image, pillow_settings, read_file, read_member, to_rgb
from featx.images.preprocess import Preprocess
from featx.networks.backbone import load_network
from featx.networks.layer_names import SOFTMAX
from featx.networks.weights import weights_of
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
_PLAIN_MODES = ("RGB", "L", "CMYK", "YCbCr", "1")


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
    reference = _Reference(made, config.weights, reporter)
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
            image = open_image(content)
            image.load()
        except (BadImage, OSError, SyntaxError, ValueError) as bad:
            raise PlanMismatch(f"{printable(name)}: {bad}; the file says its features were extracted") from bad
        if made["exif"]:
            image = ImageOps.exif_transpose(image)
        plain = image.mode in _PLAIN_MODES and "transparency" not in image.info
        return image.convert("RGB") if plain else to_rgb(image)

    return load


class _Reference:
    """RGB image -> {layer: values (D,) or (C, H, W)}, by torchvision alone."""

    def __init__(self, made: dict[str, Any], weights: str | None, reporter: Reporter) -> None:
        source = weights_of(made["backbone"], weights or made["weights"]["spec"])
        loaded = load_network(made["backbone"], source, reporter.download)
        if loaded.sha256 != made["weights"]["sha256"]:
            raise WeightsMismatch(
                f"the file was made with weights of sha256 {made['weights']['sha256'][:16]}..., {source.name} has "
                f"{loaded.sha256[:16]}...; say where the right ones are with --weights"
            )
        self.network = loaded.network
        self.transforms = torchvision_transforms(Preprocess.from_values(made["preprocess"]))
        self.layers: dict[str, str] = {name: entry["node"] for name, entry in made["layers"].items()}
        self.pooling: str = made["pooling"]
        self.caught: dict[str, Tensor] = {}
        hooked = _modules_called_once(self.network)
        self.by_hook = {n for n in self.layers.values() if n in hooked}
        for node in self.by_hook:
            self.network.get_submodule(node).register_forward_hook(self._hook(node))
        # Asked for alone, a node is the last to be computed, so nothing can overwrite it.
        self.alone = {
            node: create_feature_extractor(self.network, [node], suppress_diff_warning=True).eval()
            for node in set(self.layers.values()) - self.by_hook
            if not node.endswith(SOFTMAX)
        }

    def _hook(self, node: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.caught[node] = output.detach().clone()

        return keep

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        batch = self.transforms(image).unsqueeze(0)
        logits = self.network(batch)
        values: dict[str, Tensor] = {}
        for layer, node in self.layers.items():
            if node.endswith(SOFTMAX):
                found = torch.softmax(logits, dim=-1)
            elif node in self.by_hook:
                found = self.caught[node]
            else:
                found = self.alone[node](batch)[node]
            values[layer] = pool_plainly(found[0], self.pooling)
        return values


def _modules_called_once(network: nn.Module) -> set[str]:
    _, nodes = get_graph_node_names(network, suppress_diff_warning=True)
    modules = {name for name, _ in network.named_modules()}
    return {node for node in nodes if node in modules and f"{node}_1" not in nodes}


def torchvision_transforms(preprocess: Preprocess) -> Callable[[Image.Image], Tensor]:
    """The same preprocessing, made of torchvision's own transforms."""
    if preprocess.mirror:
        plain = torchvision_transforms(replace(preprocess, mirror=False))
        return lambda image: plain(image).flip(-1)
    how = T.InterpolationMode(preprocess.interpolation)
    if not preprocess.squash:
        preset: Callable[[Image.Image], Tensor] = ImageClassification(
            crop_size=preprocess.crop,
            resize_size=preprocess.resize,
            mean=preprocess.mean,
            std=preprocess.std,
            interpolation=how,
        )
        return preset
    side = (preprocess.crop, preprocess.crop)
    steps = [T.Resize(side, how), T.ToTensor(), T.Normalize(preprocess.mean, preprocess.std)]
    composed: Callable[[Image.Image], Tensor] = T.Compose(steps)
    return composed


def pool_plainly(values: Tensor, spec: str) -> Tensor:
    """Pool one image's map (C, H, W) by the definitions, window by window; vectors pass unchanged."""
    if spec == "none" or values.ndim == 1:
        return values
    if spec == "flatten":
        return values.reshape(-1)
    if spec == "avg":
        return values.flatten(1).mean(1)
    if spec == "max":
        return values.flatten(1).max(1).values
    _, height, width = values.shape
    pooled = []
    for n in (int(level) for level in spec.removeprefix("spp:").split(",")):
        grid = torch.empty(len(values), n, n)
        for i in range(n):
            for j in range(n):
                top, bottom = i * height // n, -(-(i + 1) * height // n)
                left, right = j * width // n, -(-(j + 1) * width // n)
                grid[:, i, j] = values[:, top:bottom, left:right].flatten(1).max(1).values
        pooled.append(grid.reshape(-1))
    return torch.cat(pooled)
