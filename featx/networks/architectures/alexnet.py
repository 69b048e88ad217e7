"""AlexNet, torchvision's: conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool5, fc6, fc7, fc8.

Source:
    Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997, 2014.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import AlexNet, alexnet

from featx.networks.architectures.architecture import Architecture, NamedLayer, PublishedWeights
from featx.networks.architectures.sequential import name_layers


def layers(network: AlexNet) -> list[NamedLayer]:
    return name_layers(network, by_block=False)


def chain(network: AlexNet) -> list[tuple[str, nn.Module]]:
    return [
        *((f"features.{i}", module) for i, module in network.features.named_children()),
        ("avgpool", network.avgpool),
        ("flatten", nn.Flatten()),
        *((f"classifier.{i}", module) for i, module in network.classifier.named_children()),
    ]


def build(_published: str | None, _init: bool) -> nn.Module:
    network: nn.Module = alexnet(weights=None)
    return network


ENTRIES = (Architecture("alexnet", build, PublishedWeights("alexnet"), AlexNet, layers, chain),)
