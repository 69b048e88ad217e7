"""Two small networks of the AlexNet and VGG families, for 64 x 64 pixels, with the same layer names.

They exist so that featx works where nothing can be downloaded: their weights, trained on Tiny ImageNet by
`pipelines/pretrain`, are part of the package.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import Tensor, nn

from featx.networks.architectures.architecture import IMAGENET, Architecture, NamedLayer, ShippedWeights
from featx.networks.architectures.sequential import chain, name_layers

SIDE = 64
CLASSES = 200
_DROPOUT = 0.1
PREPROCESSING = {**IMAGENET, "resize": SIDE, "crop": SIDE}


class Mini(nn.Module):
    """(B, 3, 64, 64) -> (B, K) logits.

    Attributes:
        by_block: layers are called conv1_1 as in VGG, not conv1 as in AlexNet.
    """

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential, *, by_block: bool) -> None:
        super().__init__()
        self.features, self.classifier, self.by_block = features, classifier, by_block

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(pixels).flatten(1))
        return logits


def layers(network: Mini) -> list[NamedLayer]:
    return name_layers(network, by_block=network.by_block)


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> Iterator[nn.Module]:
    yield nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    yield nn.BatchNorm2d(outputs)
    yield nn.ReLU(inplace=True)


def _fully_connected(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(_DROPOUT), nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
        nn.Dropout(_DROPOUT), nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, CLASSES),
    )  # fmt: skip


def _alexnet() -> Mini:
    """Five convolutions, pooled where AlexNet pools (behind conv1, conv2 and conv5); 3.6 million parameters."""
    features = nn.Sequential(
        *_convolution(3, 64, 5, stride=2), nn.MaxPool2d(3, 2, 1),
        *_convolution(64, 160, 5), nn.MaxPool2d(3, 2, 1),
        *_convolution(160, 256, 3), *_convolution(256, 256, 3), *_convolution(256, 256, 3), nn.MaxPool2d(3, 2, 1),
    )  # fmt: skip
    return Mini(features, _fully_connected(256 * 4 * 4, 384), by_block=False)


def _vgg() -> Mini:
    """Five blocks of 3 x 3 convolutions, each block pooled; 3.0 million parameters.

    One convolution in the first block and two in the others: at 64 x 64 pixels a second one costs as much as all of
    block 3 and is bound by memory.
    """
    blocks, layers, before = ((32,), (64, 64), (128, 128), (256, 256), (256, 256)), list[nn.Module](), 3
    for widths in blocks:
        for width in widths:
            layers += _convolution(before, width, 3)
            before = width
        layers.append(nn.MaxPool2d(2))
    return Mini(nn.Sequential(*layers), _fully_connected(256 * 2 * 2, 384), by_block=True)


_BUILDERS = {"alexnet-mini": _alexnet, "vgg-mini": _vgg}
NAMES = tuple(_BUILDERS)


def build(name: str, _published: str | None, _init: bool) -> nn.Module:
    return _BUILDERS[name]()


ENTRIES = tuple(
    Architecture(name, functools.partial(build, name), ShippedWeights(name, PREPROCESSING), Mini, layers, chain)
    for name in NAMES
)
