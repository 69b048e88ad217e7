"""AlexNet, VGG and networks made like them as fully convolutional ones, named so: vgg16-dense.

The first linear layer becomes a convolution with a window as large as the maps it takes, the others 1 x 1
convolutions, with the same weights. An image larger than the network's own gives a map of every layer instead of a
vector; the scores are averaged over its positions.

Source:
    Simonyan & Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, section 3.2;
    Sermanet et al., OverFeat, ICLR 2014.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featx.errors import UsageError
from featx.networks.architectures.architecture import Architecture, NamedLayer
from featx.networks.architectures.sequential import chain

SUFFIX = "-dense"


class SlidingLinear(nn.Module):
    """A linear layer at every position: (B, C, H, W) -> (B, D, H - h + 1, W - w + 1).

    Attributes:
        weight: (D, C * h * w), as the linear layer has it.
        window: (h, w), stride and padding.
    """

    def __init__(self, linear: nn.Linear, side: tuple[int, int]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.window = (side, (1, 1), (0, 0))

    def forward(self, maps: Tensor) -> Tensor:
        side = self.window[0]
        if maps.device.type != "cpu":
            return F.conv2d(maps, self.weight.view(self.out_features, -1, *side), self.bias)
        # One image after the other: how sums are rounded depends on the number of images. As a product of matrices,
        # since a convolution would put the weights into another order for every one.
        size = maps.shape[2] - side[0] + 1, maps.shape[3] - side[1] + 1
        windows = [F.unfold(maps[row : row + 1], side)[0] for row in range(len(maps))]
        found = torch.stack([self.weight @ columns for columns in windows]).view(len(maps), -1, *size)
        return found if self.bias is None else found.add_(self.bias.view(-1, 1, 1))


class Dense(nn.Module):
    """(B, 3, H, W) -> (B, K): `features`, `classifier` at every position, and the mean over the positions.

    Attributes:
        named: its layers as the literature names them; all but the mean are maps.
    """

    def __init__(self, features: nn.Module, classifier: nn.Sequential, named: list[NamedLayer]) -> None:
        super().__init__()
        self.features, self.classifier, self.named = features, classifier, named
        self.average, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.flatten(self.average(self.classifier(self.features(x))))
        return scores


def dense(base: Architecture, name: str) -> Architecture:
    """The table's entry of a network's dense form; its weights are the network's.

    Raises:
        UsageError: the network has no such form.
    """
    if base.layers is None or base.chain is not chain:
        raise UsageError(f"{name}: AlexNet, VGG and networks made like them have a dense form; {base.name} has none")

    def build(published: str | None, init: bool) -> nn.Module:
        assert base.layers is not None
        network: Any = base.build(published, init)
        side = int(base.weights.preprocessing(published)["crop"])
        return Dense(network.features, _sliding(name, network, side), base.layers(network))

    return Architecture(name, build, base.weights, Dense, lambda network: network.named, dense_chain)


def dense_chain(network: Any) -> list[tuple[str, nn.Module]]:
    """Its modules one behind the other, (name, module)."""
    parts = ((part, getattr(network, part)) for part in ("features", "classifier"))
    inner = [(f"{part}.{index}", module) for part, modules in parts for index, module in modules.named_children()]
    return [*inner, ("average", network.average), ("flatten", network.flatten)]


def _sliding(name: str, network: Any, side: int) -> nn.Sequential:
    """The classifier with its linear layers as convolutions."""
    with torch.no_grad():
        maps = copy.deepcopy(network.features).to("meta").eval()(torch.empty(1, 3, side, side, device="meta"))
    window = (int(maps.shape[2]), int(maps.shape[3]))
    made: OrderedDict[str, nn.Module] = OrderedDict()
    channels = int(maps.shape[1])
    for index, module in network.classifier.named_children():
        made[index] = module
        if isinstance(module, nn.Linear):
            if module.in_features != channels * window[0] * window[1]:
                raise UsageError(f"{name}: a linear layer does not take the maps of {side} x {side} pixels whole")
            made[index] = SlidingLinear(module, window)
            channels, window = module.out_features, (1, 1)
        elif isinstance(module, nn.BatchNorm1d):
            made[index] = _of_maps(module)
        elif [*module.parameters(), *module.buffers()]:
            raise UsageError(f"{name}: classifier.{index} is a {type(module).__name__}, which has no dense form")
    return nn.Sequential(made)


def _of_maps(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    """The same normalisation of maps."""
    made = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.weight, made.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(made, name, buffer)
    return made
