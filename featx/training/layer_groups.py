"""The layers of a network, every parameter in exactly one of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from featx.networks.registry import literature_layers

_FEWEST_LAYERS = 5


@dataclass(frozen=True)
class LayerGroup:
    """What belongs to one layer: its parameters, and its modules without any (the dropout before it)."""

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def layer_groups(network: nn.Module) -> list[LayerGroup]:
    """The layers of a network in order, every parameter in exactly one of them.

    AlexNet, VGG and featx's own by the names of the literature, a BatchNorm with its convolution and a dropout with
    the layer behind it. Other networks by their own modules: at least five of them, the largest taken apart first.
    """
    named = [layer for layer in literature_layers(network) if layer.modules]
    if named:
        return [
            LayerGroup(
                layer.name,
                layer.modules,
                tuple(p for module in layer.modules for p in _parameters(module, network.get_submodule(module))),
            )
            for layer in named
        ]
    blocks = [(name, module) for name, module in network.named_children() if has_parameters(module)]
    while len(blocks) < _FEWEST_LAYERS:
        inner = [_children(*block) for block in blocks]
        sizes = [_size(module) if parts else 0 for (_, module), parts in zip(blocks, inner, strict=True)]
        if not max(sizes):
            break
        largest = sizes.index(max(sizes))
        blocks[largest : largest + 1] = inner[largest]
    inside = {name for block, module in blocks for name in _parameters(block, module)}
    alone = [name for name, _ in network.named_parameters() if name not in inside]
    own = [LayerGroup(name, (), (name,)) for name in alone]  # a class token, a position embedding
    return [*own, *(LayerGroup(name, (name,), _parameters(name, module)) for name, module in blocks)]


def _children(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(f"{name}.{child}", part) for child, part in module.named_children() if has_parameters(part)]


def has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _parameters(name: str, module: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}.{inner}" for inner, _ in module.named_parameters())
