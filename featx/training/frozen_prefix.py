"""Where the frozen beginning of a network ends: what lies before is computed once and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from featx.networks.build import final_layer
from featx.networks.graph.capture import trace_nodes
from featx.networks.graph.tracing import output_of, own_names
from featx.networks.registry import chain
from featx.training.layer_groups import layer_groups
from featx.training.learning_rates import Rate


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

    Networks that are a chain of modules are cut anywhere; other networks only before their final layer.
    """
    trained = {rate.parameter for rate in rates if rate.rate > 0}
    modules = chain(network)
    if modules is not None:
        return _cut_chain(network, modules, trained)
    return cut_before_head(network) if all(p.startswith(f"{final_layer(network)}.") for p in trained) else None


def cut_before_head(network: nn.Module) -> Cut | None:
    """The place before the final layer and its dropout; None if something follows that layer."""
    modules_in_order = chain(network)
    if modules_in_order is not None:
        return _cut_chain(network, modules_in_order, {f"{final_layer(network)}.weight"})
    name = final_layer(network)
    traced, nodes = trace_nodes(network)
    names = own_names(nodes)
    node, modules = nodes[name], [network.get_submodule(name)]
    if node is not output_of(traced):
        return None
    while True:
        before = node.all_input_nodes[0]
        if before.op == "call_module" and isinstance(traced.get_submodule(str(before.target)), nn.Dropout):
            modules.insert(0, network.get_submodule(names[before]))
            node = before
            continue
        return Cut(names[before], nn.Sequential(*modules))


def _cut_chain(network: nn.Module, modules: list[tuple[str, nn.Module]], trained: set[str]) -> Cut | None:
    groups = [group for group in layer_groups(network) if trained & set(group.parameters)]
    live = {module for group in groups for module in group.modules}
    first = next((place for place, (name, _) in enumerate(modules) if name in live), 0)
    if not any(True for _, module in modules[:first] for _ in module.parameters()):
        return None  # nothing that could be frozen: a conversion to grey
    return Cut(modules[first - 1][0], nn.Sequential(*(module for _, module in modules[first:])))
