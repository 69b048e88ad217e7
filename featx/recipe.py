"""Everything a feature depends on but the image, resolved from names and checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from featx.config import PRECISIONS
from featx.device import choose_device
from featx.errors import UsageError
from featx.images.preprocess import Preprocess
from featx.networks.backbones import Backbone
from featx.networks.construct import refuse_unknown
from featx.networks.names import Layer
from featx.networks.pooling import Pooling, parse_pooling
from featx.networks.weights import WeightsSource, weights_of
from featx.store.schema import LayerSpec

# Activations of one block should stay in the processor's cache; measured best: AlexNet 16-32, VGG16 4 images.
CPU_BLOCK_BYTES = 64 << 20
GPU_BLOCK_BYTES = 1 << 30
MAX_CPU_BATCH, MAX_GPU_BATCH = 32, 128


@dataclass(frozen=True)
class Recipe:
    """Everything a feature depends on but the image.

    Attributes:
        layers: what is captured, in the order asked for.
        dtype: of the result, "float32" or "float16".
        plain: on a CPU, PyTorch's own modules, whose rounding is that of training, instead of packed ones.
        decode: who decodes: "cpu", "fast", "gpu", or "auto" for cpu and gpu at once.
    """

    backbone: Backbone
    layers: tuple[Layer, ...]
    weights: WeightsSource
    preprocess: Preprocess
    pooling: Pooling
    precision: str
    dtype: str
    device: torch.device
    batch_size: int
    exif: bool
    decode: str = "cpu"
    plain: bool = False

    def layer_specs(self) -> list[LayerSpec]:
        """Name, shape after pooling and type of every captured layer.

        Raises:
            UsageError: maps are to be pooled in a layer that has none.
        """
        specs = []
        for layer in self.layers:
            geometry = self.backbone.geometry_of(layer)
            shape = geometry.shape
            pooled = self.pooling.kind in ("avg", "max", "spp") and len(shape) > 1
            if pooled and not geometry.is_map:
                raise UsageError(
                    f"--pool {self.pooling.spec} needs (C, H, W) maps; {self.backbone.name} {layer.name} gives "
                    f"{shape}. Use --pool none or flatten"
                )
            kind = self.pooling.spec if len(shape) > 1 else "none"
            specs.append(LayerSpec(layer.name, layer.node, layer.relu, kind, self.pooling.shape(shape), self.dtype))
        return specs

    def describe(self, weights_sha256: str) -> dict[str, Any]:
        """As plain values for a file's provenance; the inverse is `recipe_from`."""
        return {
            "backbone": self.backbone.name,
            "weights": {
                "name": self.weights.name,
                "spec": self.weights.spec,
                "url": self.weights.url,
                "sha256": weights_sha256,
            },
            "preprocess": self.preprocess.values(),
            "exif": self.exif,
            "pooling": self.pooling.spec,
            "layers": {layer.name: {"node": layer.node, "relu": layer.relu} for layer in self.layers},
            "precision": self.precision,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "device": self.device.type,
            "decode": self.decode,
            "plain": self.plain,
        }


def plan_recipe(
    *,
    backbone: str,
    layers: str,
    weights: str,
    pooling: Pooling,
    precision: str = "fp32",
    dtype: str = "float32",
    device: str = "auto",
    batch_size: int | None = None,
    resize: int | None = None,
    crop: int | None = None,
    squash: bool = False,
    exif: bool = False,
    mirror: bool = False,
    decode: str = "cpu",
    plain: bool = False,
) -> Recipe:
    """Resolve names into a Recipe; nothing is downloaded or computed.

    Raises:
        UsageError and its children: an unknown network, layer, weights name or device, an impossible size.
    """
    chosen = choose_device(device)
    if precision not in PRECISIONS or (precision in ("tf32", "fp16") and chosen.type == "cpu"):
        raise UsageError(f"--precision {precision} needs a GPU; on the CPU choose fp32 or bf16")
    if decode in ("gpu", "auto") and chosen.type == "cpu":
        raise UsageError(f"--decode {decode} needs a GPU; on the CPU it is --decode cpu, or fast")
    refuse_unknown(backbone)  # before its weights, which cannot be known either
    source = weights_of(backbone, weights)
    network = Backbone(backbone, crop, source.published)
    preprocess = Preprocess.from_values(network.preprocessing).overridden(
        resize=resize, crop=crop, squash=squash, mirror=mirror
    )
    captured = tuple(network.names.resolve(layers))
    return Recipe(
        backbone=network,
        layers=captured,
        weights=source,
        preprocess=preprocess,
        pooling=pooling,
        precision=precision,
        dtype=dtype,
        device=chosen,
        batch_size=batch_size or default_batch_size(network.largest_activation(captured), chosen),
        exif=exif,
        decode=decode,
        plain=plain,
    )


def recipe_from(
    stored: dict[str, Any], *, layer: str, weights: str | None, device: str, batch_size: int | None, decode: str
) -> Recipe:
    """The recipe of one layer as a head stores it (see `featx.heads.linear.recipe_of`).

    Args:
        weights: where the weights are now, if not where they were.
        device, batch_size, decode: these may differ from the stored ones; the features then differ by rounding, and
            by what decoders differ in.
    """
    preprocess = stored["preprocess"]
    recipe = plan_recipe(
        backbone=stored["backbone"],
        layers=layer,
        weights=weights or stored["weights"]["spec"],
        pooling=parse_pooling(stored["pooling"]),
        precision=stored["precision"],
        device=device,
        batch_size=batch_size,
        crop=preprocess["crop"],
        exif=stored["exif"],
        decode=decode,
    )
    return replace(recipe, preprocess=Preprocess.from_values(preprocess))


def default_batch_size(largest_activation: int, device: torch.device) -> int:
    """A power of two such that one block's largest tensor fits the processor's cache, or a GPU's memory, well.

    >>> default_batch_size(64 * 55 * 55 * 4, torch.device("cpu"))   # AlexNet
    32
    >>> default_batch_size(64 * 224 * 224 * 4, torch.device("cpu"))  # VGG16
    4
    """
    budget, most = (CPU_BLOCK_BYTES, MAX_CPU_BATCH) if device.type == "cpu" else (GPU_BLOCK_BYTES, MAX_GPU_BATCH)
    fitting = max(1, budget // max(1, largest_activation))
    return int(min(most, 1 << (fitting.bit_length() - 1)))
