"""Everything a feature depends on but the image: resolved from names, written to files, and read back.

Importing this module loads neither torch nor a network: a finished output is recognised without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from featx.errors import UsageError
from featx.extraction.reduction.projection import PCA, Reduction, from_described, parse_reduction
from featx.images.preprocess import CENTER, Preprocess
from featx.networks.external.code import code_of, refuse_changed_code, trust_code
from featx.networks.run_folder import is_run, read_run
from featx.options.extraction import NO_FEATURE_DEPENDS_ON, PRECISIONS, ExtractConfig
from featx.options.option import command_line
from featx.runtime.memory import default_batch_size
from featx.store.schema import LayerSpec

if TYPE_CHECKING:
    import torch

    from featx.networks.architectures.architecture import WeightsSource
    from featx.networks.backbone import Backbone
    from featx.networks.layer_names import Layer
    from featx.networks.pooling import Pooling

PENULTIMATE = "penultimate"


@dataclass(frozen=True)
class Recipe:
    """Everything a feature depends on but the image.

    Attributes:
        layers: what is captured, in the order asked for.
        dtype: of the result, "float32" or "float16".
        plain: on a CPU, PyTorch's own modules, whose rounding is that of training, instead of packed ones.
        decode: who decodes: "cpu", "fast", "gpu", or "auto" for cpu and gpu at once.
        assumed: what the user should be told about the preprocessing, where the weights do not say it.
        reduction: what makes the layers smaller; None to keep them as they are.
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
    assumed: str | None = None
    reduction: Reduction | None = None

    @classmethod
    def plan(
        cls,
        *,
        backbone: str,
        layers: str | None = None,
        weights: str = "default",
        pool: str = "none",
        precision: str = "fp32",
        reduce: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int | None = None,
        resize: int | None = None,
        crop: int | None = None,
        dense: int | None = None,
        squash: bool = False,
        fit: str | None = None,
        pad_color: str | None = None,
        mean: str | Sequence[float] | None = None,
        std: str | Sequence[float] | None = None,
        interpolation: str | None = None,
        grey: bool = False,
        exif: bool = False,
        mirror: bool = False,
        views: str = CENTER,
        aggregate: str = "mean",
        decode: str = "cpu",
        plain: bool = False,
        preprocess: str | None = None,
        named_by_user: bool = True,
    ) -> Recipe:
        """Resolve names, as the options of `featx extract` mean them; nothing is downloaded or computed.

        Args:
            layers: by default `default_layer`.
            dense: side of the square that the network sees as a fully convolutional one, its layers averaged.
            named_by_user: the backbone is not what a file says; code that it means may run.
            preprocess: the published weights whose preprocessing is meant; by default the weights' or the network's.

        Raises:
            UsageError and its children: an unknown network, layer, weights name or device, an impossible size.
        """
        from featx.networks.backbone import Backbone
        from featx.networks.pooling import parse_pooling
        from featx.networks.registry import default_preprocessing, refuse_unknown, takes_flow
        from featx.networks.weights import assumed_preprocessing, preprocessing_for, published_name, weights_of
        from featx.runtime.device import choose_device

        if dense is not None:
            if crop or resize:
                raise UsageError(f"--dense {dense} says the size; leave out --resize and --crop")
            backbone, crop, pool = f"{backbone}-dense", dense, pool if pool != "none" else "avg"
            resize = None if squash or fit in ("pad", "squash") else dense
        chosen = choose_device(device)
        if precision not in PRECISIONS or (precision in ("tf32", "fp16") and chosen.type == "cpu"):
            raise UsageError(f"--precision {precision} needs a GPU; on the CPU choose fp32 or bf16")
        if decode in ("gpu", "auto") and chosen.type == "cpu":
            raise UsageError(f"--decode {decode} needs a GPU; on the CPU it is --decode cpu, or fast")
        if decode != "cpu":
            from featx.images.device_decode import load_decoder  # PyTorch, which what is finished does without

            load_decoder()  # now, not after the first images
        if named_by_user:
            trust_code(backbone)
        refuse_unknown(backbone)  # before its weights
        source = weights_of(backbone, weights)
        named = published_name(backbone, preprocess) if preprocess else None
        if source.published is None and source.url is None:
            source = replace(source, published=named)  # a vision transformer's size depends on it
        assumed = assumed_preprocessing(backbone, source)
        network = Backbone(backbone, crop, source.published)
        values = default_preprocessing(backbone, named) if named else preprocessing_for(network.preprocessing, source)
        prepared = Preprocess.from_values(dict(values)).overridden(
            resize=resize, crop=crop, squash=squash, fit=fit, pad_color=pad_color, interpolation=interpolation,
            mean=mean, std=std, grey=grey, mirror=mirror, views=views, aggregate=aggregate,
        )  # fmt: skip
        if takes_flow(backbone) and prepared.values() != Preprocess.from_values(dict(values)).values():
            raise UsageError(f"{backbone} takes optical flow as it is; leave out what changes its size or its levels")
        if decode != "cpu" and not prepared.is_plain:
            raise UsageError(
                f"--decode {decode} resizes bilinearly or bicubically and cuts out the centre; --views, --grey, "
                f"--fit pad and other interpolations need --decode cpu"
            )
        captured = tuple(network.names.resolve(default_layer(backbone) if layers is None else layers))
        return cls(
            backbone=network, layers=captured, weights=source, preprocess=prepared, pooling=parse_pooling(pool),
            precision=precision, dtype=dtype, device=chosen,
            batch_size=batch_size or default_batch_size(network.largest_activation(captured), chosen.type),
            exif=exif, decode=decode, plain=plain, assumed=assumed,
            reduction=parse_reduction(reduce) if reduce else None,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: ExtractConfig) -> Recipe:
        """What makes the features that options ask for."""
        return cls.plan(**{name: value for name, value in vars(config).items() if name not in NO_FEATURE_DEPENDS_ON})

    @classmethod
    def from_dict(
        cls,
        stored: dict[str, Any],
        *,
        layer: str,
        weights: str | None,
        device: str,
        batch_size: int | None,
        decode: str,
        projection: Mapping[str, npt.NDArray[Any]] | None = None,
        whole: bool = False,
    ) -> Recipe:
        """The recipe of one layer, as `describe_layer` has described it for a head.

        Args:
            weights: where the weights are now, if not where they were.
            device, batch_size, decode: these may differ from the stored ones; the features then differ by little.
            projection: of a layer that was reduced; `whole`: it is wanted as it was before that.
        """
        preprocess = stored["preprocess"]
        recipe = cls.plan(
            backbone=stored["backbone"],
            layers=layer,
            weights=weights or stored["weights"]["spec"],
            pool=stored["pooling"],
            precision=stored["precision"],
            dtype=stored.get("dtype", "float32"),  # heads of older versions do not say
            device=device,
            batch_size=batch_size,
            crop=preprocess["crop"],
            exif=stored["exif"],
            decode=decode,
            preprocess=stored["weights"].get("published"),
            named_by_user=False,
        )
        refuse_changed_code(stored["backbone"], stored.get("code"))
        reduction, reduced = None, stored.get("reduction")
        if reduced and not whole:
            if not projection:
                raise UsageError(f"{layer} was made with --reduce; here it is needed with all of its values")
            reduction = from_described(reduced, layer, projection)
        return replace(recipe, preprocess=Preprocess.from_values(preprocess), reduction=reduction)

    def to_dict(self, weights_sha256: str) -> dict[str, Any]:
        """As plain values, for a file's provenance."""
        code = code_of(self.backbone.name)
        return {
            "backbone": self.backbone.name,
            **({"code": code} if code else {}),
            "weights": {
                "name": self.weights.name,
                "spec": self.weights.spec,
                "url": self.weights.url,
                "sha256": weights_sha256,
                **({"published": self.weights.published} if self.weights.file and self.weights.published else {}),
            },
            "preprocess": self.preprocess.values(),
            "exif": self.exif,
            "pooling": self.pooling.spec,
            **({"reduction": self.reduction.describe()} if self.reduction else {}),
            "layers": {layer.name: {"node": layer.node, "relu": layer.relu} for layer in self.layers},
            "precision": self.precision,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "device": self.device.type,
            "decode": self.decode,
            "plain": self.plain,
        }

    def layer_specs(self) -> list[LayerSpec]:
        """Name, shape after pooling and type of every captured layer.

        Raises:
            UsageError: the pooling does not suit a layer.
        """
        specs = []
        for layer in self.layers:
            geometry = self.backbone.geometry_of(layer)
            shape = geometry.shape
            self.pooling.refuse_unsuited(f"{self.backbone.name} {layer.name}", shape, geometry.layout)
            kind = self.pooling.spec if len(shape) > 1 else "none"
            pooled = self.pooling.shape(shape, geometry.layout)
            if self.preprocess.view_count > 1 and self.preprocess.aggregate == "stack":
                pooled = (self.preprocess.view_count, *pooled)
            spec = LayerSpec(layer.name, layer.node, layer.relu, kind, pooled, self.dtype)
            specs.append(replace(spec, shape=self.reduction.smaller(spec)) if self.reduction else spec)
        return specs


def describe_layer(provenance: dict[str, Any], layer: str, pooling: str) -> dict[str, Any]:
    """What makes one layer of a features file, as plain values for a head; `Recipe.from_dict` reads it.

    Args:
        provenance: the file's.
        pooling: of this layer; vectors are not pooled whatever was asked for.
    """
    kept = ("backbone", "weights", "preprocess", "exif", "precision", "dtype", "batch_size")
    names = {spec.name for spec in fields(ExtractConfig)}
    # Options that an older version had are left out; what they meant is in the rest of the provenance.
    request = {name: value for name, value in provenance["request"].items() if name in names}
    alone = ExtractConfig(**{**request, "layers": layer})
    code = {"code": provenance["code"]} if provenance.get("code") else {}
    if made := provenance.get("reduction"):
        code["reduction"] = {key: value for key, value in made.items() if key != "layers"} | made["layers"][layer]
        alone = replace(alone, reduce="FITTED.h5" if made["method"] == PCA else alone.reduce)
    return (
        {key: provenance[key] for key in kept}
        | code
        | {
            "node": provenance["layers"][layer]["node"],
            "pooling": pooling,
            "command": f"{extract_command(alone)} -o NEW.h5",
        }
    )


def extract_command(config: ExtractConfig) -> str:
    """The command line of an extraction; a layer that is the default is left out."""
    is_default = config.layers == default_layer(config.backbone)
    return command_line("extract", "SOURCE", replace(config, layers=None) if is_default else config)


def default_layer(backbone: str) -> str:
    """The layer that is meant where none is named: fc7 of AlexNet and VGG, the penultimate of any other network.

    >>> default_layer("vgg16"), default_layer("resnet18")
    ('fc7', 'penultimate')
    """
    name = read_run(backbone).backbone if is_run(backbone) else backbone
    return "fc7" if name.startswith(("alexnet", "vgg")) and ":" not in name else PENULTIMATE
