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

from featx.errors import UsageError
from featx.networks.graph.tracing import trace_network
from featx.networks.layer_names import SOFTMAX

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
}


def trace_nodes(network: nn.Module) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """The network as a graph without in-place operations, and its nodes by name.

    Args:
        network: in eval mode; its modules are shared with the graph, and their
            `inplace` switches are turned off.

    Returns:
        graph: computes the same as `network`; names of its nodes and modules, see `trace_network`.
    """
    traced, nodes = trace_network(network)
    graph = fx.GraphModule(traced, traced.graph)
    forbid_in_place(graph)
    return graph, nodes


def forbid_in_place(graph: fx.GraphModule) -> None:
    """Replace every in-place operation of a traced graph by its ordinary form.

    Raises:
        UsageError: a tensor is used again after it was changed in place, so the ordinary form would compute something
            else.
    """
    seen: set[fx.Node] = set()
    for node in graph.graph.nodes:
        seen.add(node)
        if _is_in_place(graph, node):
            _refuse_later_use(node, seen)
    for module in graph.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]  # ReLU and its kin declare it as bool
    for node in graph.graph.nodes:
        if node.op == "call_function":
            _rewrite_function(node)
        elif node.op == "call_method" and _is_in_place_name(node.target):
            node.target = node.target[:-1]
    graph.recompile()


def _is_in_place(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(graph.get_submodule(str(node.target)), "inplace", False) is True
    if node.op == "call_method":
        return _is_in_place_name(str(node.target))
    if node.op != "call_function" or not callable(node.target):
        return False
    return node.target in _OUT_OF_PLACE or _is_in_place_name(getattr(node.target, "__name__", ""))


def _refuse_later_use(node: fx.Node, seen: set[fx.Node]) -> None:
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node):
        return
    later = [user for user in changed.users if user not in seen]
    if later or not node.users:
        raise UsageError(
            f"this network changes {changed.name} in place ({node.name}) and uses it again, so its layers have "
            f"no value of their own there; write the operation as x = f(x) with inplace=False"
        )


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


def is_opaque(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a module of somebody else's that is taken as one operation."""
    if node.op != "call_module":
        return False
    return not type(traced.get_submodule(str(node.target))).__module__.startswith(("torch.nn", "featx."))


def _protect_from(traced: fx.GraphModule, graph: fx.Graph) -> None:
    """Give copies to modules that are taken as one operation: they may change what they are given in place."""
    for node in list(graph.nodes):
        if not is_opaque(traced, node):
            continue
        for given in node.all_input_nodes:
            with graph.inserting_before(node):
                node.replace_input_with(given, graph.call_method("clone", (given,)))


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
    _protect_from(traced, graph)
    captured = fx.GraphModule(traced, graph)
    captured.graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.recompile()
    return captured
