"""What featx has to know of a network: how it is built, what its layers are called, where its weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torchvision.models import WeightsEnum, get_model_weights

from featx.errors import UsageError
from featx.runtime.text import nearest_names


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
    """Where weights come from; exactly one of `url`, `file` and `seed` is set."""

    spec: str
    name: str
    url: str | None = None
    file: Path | None = None
    seed: int | None = None

    @property
    def published(self) -> str | None:
        """torchvision's name of these weights, None if they are not torchvision's."""
        return self.name if self.url else None


class Weights(Protocol):
    """The pretrained weights of one network."""

    def source(self, spec: str) -> WeightsSource:
        """What `--weights SPEC` means, "default" or a name.

        Raises:
            UsageError: no weights of that name, with those there are.
        """

    def preprocessing(self, name: str | None = None) -> dict[str, Any]:
        """What images go through before the network, as plain values; of the default weights without a name."""


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that torchvision publishes."""

    network: str

    def entry(self, name: str | None = None) -> WeightsEnum:
        """torchvision's entry, by default the network's DEFAULT."""
        entries = get_model_weights(self.network)
        return entries[name.split(".")[-1]] if name else entries.DEFAULT

    def source(self, spec: str) -> WeightsSource:
        published = get_model_weights(self.network)
        if spec == "default":
            chosen = published.DEFAULT
        elif spec.rsplit(".", maxsplit=1)[-1] in published.__members__:
            chosen = published[spec.rsplit(".", maxsplit=1)[-1]]
        else:
            names = list(published.__members__)
            raise UsageError(
                f"--weights is {spec!r}; for {self.network} it can be default, {', '.join(names)}, random:SEED, or a "
                f".pth or .safetensors file. Nearest: {nearest_names(spec, names, 1)}"
            )
        return WeightsSource(spec, str(chosen), url=chosen.url)

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
class ShippedWeights:
    """Weights that are part of the package."""

    network: str
    values: dict[str, Any]

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
    """

    name: str
    build: Callable[[str | None, bool], nn.Module]
    weights: Weights
    module: type[nn.Module] | None = None
    layers: Callable[[Any], list[NamedLayer]] | None = None
    chain: Callable[[Any], list[tuple[str, nn.Module]]] | None = None
