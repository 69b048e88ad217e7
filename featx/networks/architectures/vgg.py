"""VGG, torchvision's, with and without BatchNorm: conv1_1, conv1_2, pool1, ..., conv5_3, pool5, fc6, fc7, fc8.

Source:
    Simonyan & Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.
"""

from __future__ import annotations

import functools

from torch import nn
from torchvision.models import VGG, get_model

from featx.networks.architectures.alexnet import chain
from featx.networks.architectures.architecture import Architecture, NamedLayer, PublishedWeights
from featx.networks.architectures.sequential import name_layers

NAMES = ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")


def layers(network: VGG) -> list[NamedLayer]:
    return name_layers(network, by_block=True)


def build(name: str, _published: str | None, init: bool) -> nn.Module:
    network: nn.Module = get_model(name, weights=None, init_weights=init)
    return network


ENTRIES = tuple(
    Architecture(name, functools.partial(build, name), PublishedWeights(name), VGG, layers, chain) for name in NAMES
)
