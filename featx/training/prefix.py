"""Where the frozen beginning of a network ends: what lies before is computed once and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchvision.models import VGG, AlexNet

from featx.networks.construct import final_layer
from featx.networks.mini import Mini
from featx.networks.tap import trace_nodes
from featx.training.rates import Rate, layer_groups


@dataclass(frozen=True)
class Cut:
    """A place between two modules.

    Attributes:
        node: the graph node whose output is stored.
        rest: everything behind it, sharing its modules with the network.
    """

    node: str
    rest: nn.Module


def cut_before_training(network: nn.Module, rates: Sequence[Rate]) -> Cut | None:
    """The last place before anything that is ever trained; None if there is none that featx can cut at.

    AlexNet, VGG and featx's own are cut anywhere; other networks only before their final layer.
    """
    trained = {rate.parameter for rate in rates if rate.rate > 0}
    if isinstance(network, AlexNet | VGG | Mini):
        return _cut_sequence(network, trained)
    return cut_before_head(network) if all(p.startswith(f"{final_layer(network)}.") for p in trained) else None


def cut_before_head(network: nn.Module) -> Cut | None:
    """The place before the final layer and its dropout; None if something follows that layer."""
    if isinstance(network, AlexNet | VGG | Mini):
        return _cut_sequence(network, {f"{final_layer(network)}.weight"})
    name = final_layer(network)
    traced, nodes = trace_nodes(network)
    names = {node: name for name, node in nodes.items()}
    node, modules = nodes[name], [network.get_submodule(name)]
    if node is not list(nodes.values())[-1]:
        return None
    while True:
        before = node.all_input_nodes[0]
        if before.op == "call_module" and isinstance(traced.get_submodule(str(before.target)), nn.Dropout):
            modules.insert(0, network.get_submodule(names[before]))
            node = before
            continue
        return Cut(names[before], nn.Sequential(*modules))


def _cut_sequence(network: AlexNet | VGG | Mini, trained: set[str]) -> Cut | None:
    chain: list[tuple[str, nn.Module]] = [(f"features.{i}", m) for i, m in network.features.named_children()]
    if not isinstance(network, Mini):
        chain.append(("avgpool", network.avgpool))
    chain.append(("flatten", nn.Flatten()))
    chain += [(f"classifier.{i}", m) for i, m in network.classifier.named_children()]
    live = [module for group in layer_groups(network) if trained & set(group.parameters) for module in group.modules]
    first = next((place for place, (name, _) in enumerate(chain) if name in live), 0)
    return Cut(chain[first - 1][0], nn.Sequential(*(module for _, module in chain[first:]))) if first else None
