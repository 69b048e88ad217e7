"""The table of networks that featx knows by name: a new one is a module in `architectures` and an entry here."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from featx.errors import FileFormatError, UnknownBackbone
from featx.networks.architectures import alexnet, deepface, highway, imagenet2012, lenet, mini, vgg
from featx.networks.architectures.architecture import Architecture, NamedLayer, ShippedWeights
from featx.networks.architectures.forms.dense import SUFFIX as DENSE
from featx.networks.architectures.forms.dense import Dense, dense, dense_chain
from featx.networks.architectures.forms.flow import SUFFIX as FLOW
from featx.networks.architectures.forms.flow import FlowWeights, flow
from featx.networks.architectures.variants import parse_variant, variant
from featx.networks.external.code import TIMM, is_code
from featx.networks.run_folder import is_run, read_run
from featx.runtime.text import nearest_names

_MODULES = (alexnet, vgg, mini, lenet, imagenet2012, deepface, highway)
_DEFINED_HERE: dict[str, Architecture] = {entry.name: entry for module in _MODULES for entry in module.ENTRIES}
_LAYERS_AND_CHAIN: dict[type[nn.Module] | None, tuple[Any, Any]] = {
    **{entry.module: (entry.layers, entry.chain) for entry in _DEFINED_HERE.values()},
    Dense: (lambda network: network.named, dense_chain),
}


@functools.cache
def architectures() -> dict[str, Architecture]:
    """All networks by name; this loads torchvision, which those defined here do without."""
    from featx.networks.architectures import torchvision_classifiers

    return {entry.name: entry for entry in torchvision_classifiers.ENTRIES} | _DEFINED_HERE


def is_architecture(name: str) -> bool:
    """Whether there is a network of that name.

    Raises:
        UsageError: one of timm's that timm does not have, or code that nobody has named.
    """
    if is_external(name):
        return bool(_external(name))
    if name in _DEFINED_HERE:
        return True
    if name.endswith(DENSE):
        return is_architecture(name.removesuffix(DENSE))
    if name.endswith(FLOW):
        return is_architecture(name.removesuffix(FLOW))
    change = parse_variant(name)
    return is_architecture(change.base) if change is not None else name in architectures()


def backbone_names() -> list[str]:
    """The names of all networks, AlexNet and VGG first."""
    return sorted(architectures(), key=lambda name: (not name.startswith(("alexnet", "vgg")), name))


def is_external(name: str) -> bool:
    """Whether a name means a network of timm's or code of the user's."""
    return name.startswith(TIMM) or is_code(name)


def _external(name: str) -> Architecture:
    if name.startswith(TIMM):
        from featx.networks.external.timm_models import timm_architecture

        return timm_architecture(name)
    from featx.networks.external.own_module import own_architecture

    return own_architecture(name)


def refuse_unknown(name: str) -> None:
    """Raise UnknownBackbone, with the nearest names, unless there is a network or a run of that name."""
    if not is_run(name) and not is_architecture(name):
        raise UnknownBackbone(
            f"no network {name!r}. Nearest: {nearest_names(name, backbone_names())}. "
            f"It can be alexnet, vgg11, vgg13, vgg16, vgg19 (each also with _bn), alexnet-mini, vgg-mini, any "
            f"torchvision classifier, timm:NAME, net.py:build for a module of your own, or the folder of a featx "
            f"finetune run"
        )


def architecture(name: str) -> Architecture:
    """The entry of a network, or of the network a run was fine-tuned from.

    Raises:
        UnknownBackbone: no such network.
    """
    refuse_unknown(name)
    if is_run(name):
        base = read_run(name).backbone
        if is_run(base):
            raise FileFormatError(f"{name} says that it was made from another run, {base}; a run names a network")
        return architecture(base)
    if is_external(name):
        return _external(name)
    if name in _DEFINED_HERE:
        return _DEFINED_HERE[name]
    if name.endswith(DENSE):
        return dense(architecture(name.removesuffix(DENSE)), name)
    if name.endswith(FLOW):
        return flow(architecture(name.removesuffix(FLOW)), name)
    change = parse_variant(name)
    return architectures()[name] if change is None else variant(architecture(change.base), name, change)


def takes_flow(name: str) -> bool:
    """Whether a network takes stacks of optical flow."""
    return isinstance(architecture(name).weights, FlowWeights)


def literature_layers(network: nn.Module) -> list[NamedLayer]:
    """The layers of a network under their literature names, in order; empty for networks without."""
    layers = _LAYERS_AND_CHAIN.get(type(network), (None, None))[0]
    return [] if layers is None else layers(network)


def chain(network: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The modules of a network that is a chain of them, by name; None for others."""
    links = _LAYERS_AND_CHAIN.get(type(network), (None, None))[1]
    return None if links is None else links(network)


def default_preprocessing(name: str, weights: str | None = None) -> dict[str, Any]:
    """The preprocessing of a network's weights, as plain values.

    Args:
        weights: a torchvision weights name; by default the network's DEFAULT.
    """
    return dict(read_run(name).preprocess) if is_run(name) else architecture(name).weights.preprocessing(weights)


def class_names(name: str, count: int) -> list[str]:
    """The names of a network's classes: a run's own, those of published or shipped weights; else their numbers.

    Args:
        count: how many it has.
    """
    if is_run(name):
        return list(read_run(name).classes)
    if isinstance(shipped := architecture(name).weights, ShippedWeights):
        names = shipped.class_names()
        return names if len(names) == count else [str(index) for index in range(count)]
    from torchvision.models import get_model_weights, list_models

    if name in list_models():
        for weights in get_model_weights(name):
            found = weights.meta.get("categories")
            if found is not None and len(found) == count:
                return list(found)
    return [str(index) for index in range(count)]
