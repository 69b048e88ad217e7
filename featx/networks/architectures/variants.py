"""Networks with layers taken out or widened, named so: alexnet-without-conv3-conv4, alexnet-widen-fc6x2.

Source:
    Zeiler & Fergus, Visualizing and understanding convolutional networks, ECCV 2014, Table 3.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featx.errors import UsageError
from featx.networks.architectures.architecture import Architecture, NamedLayer, Unpublished
from featx.networks.architectures.sequential import Chained, chain

WITHOUT, WIDEN = "-without-", "-widen-"
_FACTOR = re.compile(r"([a-z]+[0-9_]+)x(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Change:
    """What makes a variant of a network.

    Attributes:
        without: names of layers that are taken out.
        widen: layer -> by how much its units are multiplied.
    """

    base: str
    without: tuple[str, ...]
    widen: dict[str, float]


def variant_name(base: str, without: Sequence[str], widen: Sequence[str]) -> str:
    """The name of a variant.

    >>> variant_name("alexnet", ["conv3", "conv4"], ["fc6x2"])
    'alexnet-without-conv3-conv4-widen-fc6x2'
    """
    name = base + (WITHOUT + "-".join(without) if without else "")
    return name + (WIDEN + "-".join(widen) if widen else "")


def parse_variant(name: str) -> Change | None:
    """What a variant's name says; None if it is no variant's.

    Raises:
        UsageError: it is nearly one.
    """
    if WITHOUT not in name and WIDEN not in name:
        return None
    rest, _, widen = name.partition(WIDEN)
    base, _, without = rest.partition(WITHOUT)
    factors = {}
    for word in widen.split("-") if widen else ():
        part = _FACTOR.fullmatch(word)
        if part is None or float(part[2]) <= 0:
            raise UsageError(f"{name}: {word!r} widens nothing; write it as fc6x2")
        factors[part[1]] = float(part[2])
    return Change(base, tuple(without.split("-")) if without else (), factors)


def variant(base: Architecture, name: str, change: Change) -> Architecture:
    """The table's entry of a variant.

    Raises:
        UsageError: the network cannot be varied so.
    """

    def build(published: str | None, init: bool) -> nn.Module:
        side = int(base.weights.preprocessing(published)["crop"])
        return vary(base.build(published, init), base.layers, change, side)

    if base.layers is None or base.chain is None:
        raise UsageError(f"{name}: layers can be taken out of AlexNet, VGG and networks made like them")
    return Architecture(
        name, build, Unpublished(name, base.weights.preprocessing()), Chained, lambda network: network.named, chain
    )


def vary(network: nn.Module, layers: Callable[[Any], list[NamedLayer]] | None, change: Change, side: int) -> Chained:
    """A network with layers taken out and widened; what follows takes what comes.

    The pooling behind a convolution stays when the convolution goes, so that sizes stay.

    Args:
        side: of the images it is for, in pixels.

    Raises:
        UsageError: no such layer; the last one; nothing is left.
    """
    named = layers(network) if layers is not None else []
    by_name = {layer.name: layer for layer in named if layer.modules}
    last = list(by_name)[-1]
    for name in (*change.without, *change.widen):
        if name not in by_name:
            raise UsageError(f"{change.base} has no layer {name} to change; it has {', '.join(by_name)}")
        if name == last:
            raise UsageError(f"{last} makes the scores of {change.base}; it can neither go nor be widened")
    if both := set(change.without) & set(change.widen):
        raise UsageError(f"{', '.join(sorted(both))} cannot be both taken out and widened")
    convolutions = [name for name in by_name if name.startswith("conv")]
    if set(convolutions) <= set(change.without):
        raise UsageError(f"{change.base} without {', '.join(convolutions)} has no maps")
    gone = {module for name in change.without for module in by_name[name].modules}
    pools = {layer.node for layer in named if not layer.modules}
    wide = {module: factor for name, factor in change.widen.items() for module in by_name[name].modules}
    whole: Any = network
    old: Any = chain(whole)
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    values = 3
    for name, module in old:
        if name in gone and name not in pools:
            continue
        if isinstance(module, nn.Flatten):
            values *= _positions(kept, side)
        factor = wide.get(name, 1.0)
        kept[name], values = _fitted(module, values, factor)
    left = {name: [] for name in by_name}  # type: dict[str, list[str]]
    for name, layer in by_name.items():
        left[name] = [module for module in layer.modules if module in kept]
    own = [
        layer if not layer.modules else NamedLayer(layer.name, layer.node, layer.before_relu, tuple(left[layer.name]))
        for layer in named
        if layer.name not in change.without
    ]
    return Chained(_part(kept, "features"), getattr(whole, "avgpool", None), _part(kept, "classifier"), own).train(
        network.training
    )


def _part(kept: OrderedDict[str, nn.Module], prefix: str) -> nn.Sequential:
    """The modules of one part, under the names they had."""
    own = [(name.partition(".")[2], module) for name, module in kept.items() if name.startswith(f"{prefix}.")]
    return nn.Sequential(OrderedDict(own))


def _positions(maps: OrderedDict[str, nn.Module], side: int) -> int:
    """How many positions the maps have that some modules make of an image."""
    values = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad():
        for module in maps.values():
            values = copy.deepcopy(module).to("meta")(values)
    return values.shape[2] * values.shape[3]


def _fitted(module: nn.Module, values: int, factor: float) -> tuple[nn.Module, int]:
    """A module that takes `values` channels or values, and how many it gives; itself if it fits already."""
    if isinstance(module, nn.Conv2d):
        outputs = max(1, round(module.out_channels * factor))
        if (module.in_channels, module.out_channels) == (values, outputs):
            return module, outputs
        groups = module.groups if values % module.groups == 0 and outputs % module.groups == 0 else 1
        how: Any = module.kernel_size, module.stride, module.padding, module.dilation, groups, module.bias is not None
        made: nn.Module = nn.Conv2d(values, outputs, *how).to(module.weight.device)
        return made, outputs
    if isinstance(module, nn.Linear):
        outputs = max(1, round(module.out_features * factor))
        if (module.in_features, module.out_features) == (values, outputs):
            return module, outputs
        return nn.Linear(values, outputs, module.bias is not None, module.weight.device), outputs
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.num_features != values:
        return type(module)(values, device=torch.device(module.weight.device)), values
    return module, values


def describe_changes(base: nn.Module, changed: nn.Module) -> list[str]:
    """What became of the modules of a network: those that are gone, and those with other sizes."""
    before, after = dict(base.named_modules()), dict(changed.named_modules())
    lines = []
    for name, module in before.items():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        other = after.get(name)
        if other is None:
            lines.append(f"{name}: taken out ({_size(module)})")
        elif _size(other) != _size(module):
            lines.append(f"{name}: {_size(module)} becomes {_size(other)}")
    counts = [sum(p.numel() for p in network.parameters()) for network in (base, changed)]
    return [*lines, f"{counts[1]:,} parameters instead of {counts[0]:,}"]


def _size(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return f"{module.in_channels} to {module.out_channels} maps"
    if isinstance(module, nn.Linear):
        return f"{module.in_features} to {module.out_features} values"
    return ""
