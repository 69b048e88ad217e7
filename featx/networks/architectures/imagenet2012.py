"""The networks of ImageNet's first years: Krizhevsky's as printed, Caffe's, and Zeiler & Fergus'.

Source:
    Krizhevsky, Sutskever & Hinton, ImageNet classification with deep convolutional neural networks, NIPS 2012; Jia et
    al., Caffe, 2014 (its reference model exchanges pooling and normalisation); Zeiler & Fergus, Visualizing and
    understanding convolutional networks, ECCV 2014, Figure 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from featx.networks.architectures.architecture import IMAGENET, Architecture, Unpublished
from featx.networks.architectures.sequential import Chained, chain, name_layers

# Pixels of 0..255 less the mean colour, as these networks were trained.
_PLAIN = {**IMAGENET, "mean": [0.48235, 0.45882, 0.40784], "std": [1 / 255] * 3}
# The mean pixel of BVLC's ilsvrc_2012_mean.npy, as red, green, blue.
_BVLC_MEAN = [122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255]
KRIZHEVSKY = {**_PLAIN, "resize": 256, "crop": 227, "mean": _BVLC_MEAN}


def _norm() -> nn.Module:
    """Local response normalisation over five maps, (1 + alpha/5 sum of squares)^-0.75 with alpha = 1e-4.

    These are Caffe's numbers, with which the weights that are to be had were trained; the paper prints k = 2, and a
    sum that is not divided by five.
    """
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


def _classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(4096, 1000),
    )  # fmt: skip


def alexnet_2012(*, pool_first: bool) -> Chained:
    """(B, 3, 227, 227) -> (B, 1000) in two groups; 60,965,224 parameters.

    Args:
        pool_first: pooling before the normalisation, as in Caffe's reference model.
    """

    def behind() -> list[nn.Module]:
        both = [_norm(), nn.MaxPool2d(3, 2)]
        return both[::-1] if pool_first else both

    features = nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(inplace=True), *behind(),
        nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True), *behind(),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    return _named(features, _classifier())


def zfnet() -> Chained:
    """(B, 3, 224, 224) -> (B, 1000); maps of 110, 55, 26, 13, 13, 13 and 6; 62,357,608 parameters."""
    features = nn.Sequential(
        nn.Conv2d(3, 96, 7, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1), _norm(),
        nn.Conv2d(96, 256, 5, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1), _norm(),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    return _named(features, _classifier())


def _named(features: nn.Sequential, classifier: nn.Sequential) -> Chained:
    for module in (*features, *classifier):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)  # as in the paper
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    network = Chained(features, None, classifier, [])
    network.named = name_layers(network, by_block=False)
    return network


def _entry(name: str, build: Callable[[], Chained], values: dict[str, object]) -> Architecture:
    return Architecture(
        name, lambda _published, _init: build(), Unpublished(name, values), Chained, lambda one: one.named, chain
    )


ENTRIES = (
    _entry("alexnet-2012", functools.partial(alexnet_2012, pool_first=False), KRIZHEVSKY),
    _entry("caffenet", functools.partial(alexnet_2012, pool_first=True), KRIZHEVSKY),
    _entry("zfnet", zfnet, _PLAIN),
)
