"""Read any layer of a network, as it was when it was computed.

torchvision's own `create_feature_extractor` returns tensors that later in-place operations overwrite: AlexNet's
`classifier.1` asked together with `classifier.2` comes back rectified. Here the traced graph is rewritten so
that nothing in it works in place, and is cut behind the deepest layer asked for.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping

import torch
from torch import fx, nn

from featx.networks.layer_names import SOFTMAX
from featx.networks.registry import chain

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
}


def trace_nodes(network: nn.Module) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """The network as a graph without in-place operations, and its nodes by torchvision's names in order.

    Args:
        network: any torchvision classifier in eval mode; its modules are shared with the graph, and their
            `inplace` switches are turned off.

    Returns:
        graph: computes the same as `network`; node name -> node, in the order of computation.
    """
    traced, nodes = _trace_chain(network) if chain(network) is not None else _trace_by_torchvision(network)
    graph = fx.GraphModule(traced, traced.graph)
    forbid_in_place(graph)
    return graph, nodes


def _trace_chain(network: nn.Module) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """A network in which every module is called once: its nodes have the names of its modules."""
    traced = fx.symbolic_trace(network)
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    return traced, {str(node.target) if node.op == "call_module" else node.name: node for node in nodes}


def _trace_by_torchvision(network: nn.Module) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    train_names, names = get_graph_node_names(network, suppress_diff_warning=True)
    traced = create_feature_extractor(
        network,
        train_return_nodes=train_names[-1:],
        eval_return_nodes={name: name for name in names},
        suppress_diff_warning=True,
    ).eval()
    output = next(node for node in reversed(traced.graph.nodes) if node.op == "output")
    return traced, {name: output.args[0][name] for name in names}


def forbid_in_place(graph: fx.GraphModule) -> None:
    """Replace every in-place operation of a traced graph by its ordinary form."""
    for module in graph.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]  # ReLU and its kin declare it as bool
    for node in graph.graph.nodes:
        if node.op == "call_function":
            _rewrite_function(node)
        elif node.op == "call_method" and _is_in_place_name(node.target):
            node.target = node.target[:-1]
    graph.recompile()


def _is_in_place_name(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _rewrite_function(node: fx.Node) -> None:
    target = node.target
    if not callable(target):  # fx guarantees that it is; the types do not
        return
    if target in _OUT_OF_PLACE:
        node.target = _OUT_OF_PLACE[target]
        return
    name = getattr(target, "__name__", "")
    if _is_in_place_name(name) and hasattr(torch, name[:-1]):
        node.target = getattr(torch, name[:-1])
        return
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (ValueError, TypeError):
        return  # a builtin without a signature has no `inplace` argument either
    if bound.arguments.get("inplace"):
        bound.arguments["inplace"] = False
        node.args, node.kwargs = bound.args, bound.kwargs


def capture_layers(traced: fx.GraphModule, nodes: Mapping[str, fx.Node], wanted: Mapping[str, str]) -> fx.GraphModule:
    """A module that returns the wanted layers and computes nothing behind the deepest of them.

    Args:
        traced, nodes: from `trace_nodes`.
        wanted: layer name -> node name; a node name ending in ":softmax" is the softmax of that node.

    Returns:
        module: (B, 3, H, W) -> {layer name: activations (B, ...)}.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(traced.graph, copies)
    outputs: dict[str, fx.Node] = {}
    for layer, name in wanted.items():
        outputs[layer] = copies[nodes[name.removesuffix(SOFTMAX)]]
        if name.endswith(SOFTMAX):
            outputs[layer] = graph.call_function(torch.softmax, (outputs[layer],), {"dim": -1})
    graph.output(outputs)
    captured = fx.GraphModule(traced, graph)
    captured.graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.recompile()
    return captured
