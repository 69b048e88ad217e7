"""What featx has to know of a network: how it is built, what its layers are called, where its weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from featx.errors import UsageError
from featx.runtime.text import nearest_names

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


@dataclass(frozen=True)
class NamedLayer:
    """A layer as the literature names it.

    Attributes:
        name: conv5, pool5, fc7.
        node: the module whose output it is: the ReLU's where there is one.
        before_relu: the module whose output is NAME:pre; None without a ReLU.
        modules: those that belong to it, with the pooling behind a convolution and the dropout before a linear
            layer; none for a pooling.
    """

    name: str
    node: str
    before_relu: str | None = None
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from; exactly one of `url`, `file`, `seed` and `built` is set.

    Attributes:
        url: of torchvision's published file, or `hf-hub:REPOSITORY`.
        built: they are those that the user's own code gives its module.
        published: torchvision's name of these weights; of a file, if its name or its hash is that of published ones.
        choice: of a file with several sets of weights, which.
    """

    spec: str
    name: str
    url: str | None = None
    file: Path | None = None
    seed: int | None = None
    published: str | None = None
    choice: str | None = None
    built: bool = False


class Weights(Protocol):
    """The pretrained weights of one network."""

    def source(self, spec: str) -> WeightsSource:
        """What `--weights SPEC` means, "default" or a name.

        Raises:
            UsageError: no weights of that name, with those there are.
        """

    def preprocessing(self, name: str | None = None) -> dict[str, Any]:
        """What images go through before the network, as plain values; of the default weights without a name."""

    def files(self) -> dict[str, str]:
        """The published weights: name -> the file's name."""


def unknown_weights(network: str, spec: str, names: list[str]) -> UsageError:
    """What to raise for a name that is none of a network's weights."""
    return UsageError(
        f"--weights is {spec!r}; for {network} it can be default, {', '.join(names)}, random:SEED, or a .pth or "
        f".safetensors file. Nearest: {nearest_names(spec, names, 1)}"
    )


# What torchvision's classifiers were trained with: the statistics of ImageNet's photographs.
IMAGENET: dict[str, Any] = {
    "resize": 256,
    "crop": 224,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
_PUBLISHED_AT = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class ListedWeights:
    """Weights that torchvision publishes, listed here: torchvision need not be loaded for them.

    Attributes:
        enum: torchvision's name of all weights of the network.
        listed: name -> file and preprocessing; the first is the default.
    """

    network: str
    enum: str
    listed: dict[str, tuple[str, dict[str, Any]]]

    def source(self, spec: str) -> WeightsSource:
        name = next(iter(self.listed)) if spec in ("default", "DEFAULT") else spec.rpartition(".")[2]
        if name not in self.listed:
            raise unknown_weights(self.network, spec, list(self.listed))
        full = f"{self.enum}.{name}"
        return WeightsSource(spec, full, url=f"{_PUBLISHED_AT}/{self.listed[name][0]}", published=full)

    def preprocessing(self, name: str | None = None) -> dict[str, Any]:
        chosen = next(iter(self.listed)) if name is None else name.rpartition(".")[2]
        return {key: list(v) if isinstance(v, list) else v for key, v in self.listed[chosen][1].items()}

    def files(self) -> dict[str, str]:
        return {f"{self.enum}.{name}": file for name, (file, _) in self.listed.items()}


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that torchvision publishes."""

    network: str

    def entry(self, name: str | None = None) -> WeightsEnum:
        """torchvision's entry, by default the network's DEFAULT."""
        from torchvision.models import get_model_weights

        entries = get_model_weights(self.network)
        return entries[name.split(".")[-1]] if name else entries.DEFAULT

    def source(self, spec: str) -> WeightsSource:
        members = type(self.entry()).__members__
        name = "DEFAULT" if spec == "default" else spec.rpartition(".")[2]
        if name not in members:
            raise unknown_weights(self.network, spec, list(members))
        full = str(members[name])
        return WeightsSource(spec, full, url=members[name].url, published=full)

    def files(self) -> dict[str, str]:
        return {str(one): one.url.rsplit("/", 1)[-1] for one in type(self.entry()).__members__.values()}

    def preprocessing(self, name: str | None = None) -> dict[str, Any]:
        transforms = self.entry(name).transforms()
        return {
            "resize": int(transforms.resize_size[0]),
            "crop": int(transforms.crop_size[0]),
            "interpolation": transforms.interpolation.value,
            "mean": [float(v) for v in transforms.mean],
            "std": [float(v) for v in transforms.std],
        }


@dataclass(frozen=True)
class Unpublished:
    """No weights that featx could fetch: the network is trained, or its weights are in a file.

    Attributes:
        values: the preprocessing it is meant for.
    """

    network: str
    values: dict[str, Any]

    def source(self, spec: str) -> WeightsSource:
        raise UsageError(
            f"{self.network} has no published weights, --weights {spec}: it is trained with featx finetune "
            f"--from-scratch, or has the weights of a file, or random:SEED"
        )

    def preprocessing(self, name: str | None = None) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, list) else value for key, value in self.values.items()}

    def files(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class ShippedWeights:
    """Weights that are part of the package, for the classes of Tiny ImageNet."""

    network: str
    values: dict[str, Any]

    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        return (self.file.parent / "tiny-imagenet-classes.txt").read_text(encoding="utf-8").splitlines()

    @property
    def file(self) -> Path:
        return Path(__file__).parents[2] / "pretrained" / f"{self.network}.safetensors"

    def source(self, spec: str) -> WeightsSource:
        if spec != "default":
            raise UsageError(
                f"--weights is {spec!r}; for {self.network} it can be default, random:SEED, a .pth or .safetensors "
                f"file"
            )
        if not self.file.is_file():
            raise UsageError(
                f"this copy of featx has no weights of {self.network}; use --weights FILE or random:SEED"
            )
        return WeightsSource("default", f"{self.network} of featx", file=self.file)

    def preprocessing(self, name: str | None = None) -> dict[str, Any]:
        return dict(self.values)

    def files(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class Architecture:
    """One network featx knows by name.

    Attributes:
        build: (name of published weights or None, whether to initialise) -> the module. A vision transformer's size
            depends on its weights.
        weights: its pretrained weights.
        module: the class whose instances `layers` and `chain` are for; None for networks without literature names.
        layers: its layers as the literature names them, in order.
        chain: its modules one behind the other, (name, module), where it is such a chain: it can be cut anywhere.
        external: "timm" or "code" of the user's own: building it needs values, and its weights need not be all of it;
            code may compute with values in its forward as well.
    """

    name: str
    build: Callable[[str | None, bool], nn.Module]
    weights: Weights
    module: type[nn.Module] | None = None
    layers: Callable[[Any], list[NamedLayer]] | None = None
    chain: Callable[[Any], list[tuple[str, nn.Module]]] | None = None
    external: str = ""
