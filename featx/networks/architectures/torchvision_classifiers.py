"""All other classifiers of torchvision; their layers have the names of their modules."""

from __future__ import annotations

import functools
from typing import Any

import torchvision
from torch import nn
from torchvision.models import get_model

from featx.networks.architectures.architecture import Architecture, PublishedWeights

# torchvision builds these two as they were when their published weights were trained: with auxiliary heads
# (unused in eval mode) and their own input scaling.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def build(name: str, published: str | None, init: bool) -> nn.Module:
    options: dict[str, Any] = {}
    if name in _WITH_AUXILIARY_HEADS:
        options = {"aux_logits": True, "transform_input": True, "init_weights": init}
    if name.startswith("vit_"):
        options["image_size"] = PublishedWeights(name).entry(published).meta["min_size"][0]
    network: nn.Module = get_model(name, weights=None, **options)
    return network


NAMES = tuple(torchvision.models.list_models(module=torchvision.models))
ENTRIES = tuple(Architecture(name, functools.partial(build, name), PublishedWeights(name)) for name in NAMES)
