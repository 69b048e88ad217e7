"""Networks that take stacks of optical flow instead of colours, named so: alexnet-flow.

The first convolution gets a filter for each of the 20 channels: the mean of its filters for the three colours
(Wang et al., Towards Good Practices for Very Deep Two-Stream ConvNets, 2015, section 3.1). Everything behind it is
the network's. The input is a square of 3 x 3 tiles, as `images.sources.video` makes it.

Source:
    Simonyan & Zisserman, Two-Stream Convolutional Networks for Action Recognition in Videos, NIPS 2014.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from featx.errors import UsageError
from featx.networks.architectures.architecture import Architecture, Weights, WeightsSource

SUFFIX = "-flow"
CHANNELS, TILES = 20, 3
_COLOURS = 3


class FlowConv2d(nn.Conv2d):
    """A convolution of the 20 channels that lie in the tiles of a square: (B, 3, 3 S, 3 S) -> (B, D, H, W)."""

    def __init__(self, plain: nn.Conv2d) -> None:
        shape: dict[str, Any] = {"kernel_size": plain.kernel_size, "stride": plain.stride, "padding": plain.padding}
        shape |= {"dilation": plain.dilation, "padding_mode": plain.padding_mode, "device": "meta"}
        super().__init__(CHANNELS, plain.out_channels, bias=plain.bias is not None, **shape)
        self.weight, self.bias = nn.Parameter(over_channels(plain.weight.detach())), plain.bias

    def forward(self, mosaic: Tensor) -> Tensor:
        side = mosaic.shape[-1] // TILES
        tiles = mosaic.reshape(-1, _COLOURS, TILES, side, TILES, side).permute(0, 2, 4, 1, 3, 5)
        channels = tiles.reshape(-1, _COLOURS * TILES * TILES, side, side)[:, :CHANNELS]
        return super().forward(channels)


def over_channels(weight: Tensor) -> Tensor:
    """The mean of filters for colours (D, 3, h, w), for each channel of flow: (D, 20, h, w)."""
    return weight.mean(1, keepdim=True).expand(-1, CHANNELS, -1, -1).clone()


@dataclass(frozen=True)
class FlowWeights:
    """The weights of a network, for stacks of flow."""

    base: Weights

    def source(self, spec: str) -> WeightsSource:
        return self.base.source(spec)

    def files(self) -> dict[str, str]:
        return self.base.files()

    def preprocessing(self, name: str | None = None) -> dict[str, Any]:
        side = TILES * int(self.base.preprocessing(name)["crop"])
        none = [128 / 255] * _COLOURS  # the level that means no displacement
        return {"resize": side, "crop": side, "interpolation": "bilinear", "mean": none, "std": [0.25] * _COLOURS}


def flow(base: Architecture, name: str) -> Architecture:
    """The table's entry of a network's form for flow.

    Raises:
        UsageError: it does not begin with a convolution of colours.
    """

    def build(published: str | None, init: bool) -> nn.Module:
        network = base.build(published, init)
        first = next(((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), None)
        if first is None or first[1].in_channels != _COLOURS or first[1].groups != 1:
            raise UsageError(f"{name}: {base.name} does not begin with a convolution of three colours")
        network.set_submodule(first[0], FlowConv2d(first[1]))
        return network

    return replace(base, name=name, build=build, weights=FlowWeights(base.weights))


def adapted(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors, those of its first convolution for flow where they are for colours."""
    found = dict(state)
    for name, module in network.named_modules():
        weight = found.get(f"{name}.weight")
        if isinstance(module, FlowConv2d) and weight is not None and weight.ndim == 4 and weight.shape[1] == _COLOURS:
            found[f"{name}.weight"] = over_channels(weight.float())
    return found
