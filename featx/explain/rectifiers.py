"""What a ReLU lets back: guided backpropagation and the deconvnet are ordinary differentiation with other ReLUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from featx.errors import UsageError


def guided(values: Tensor) -> Tensor:
    """ReLU that lets back only what is positive, and only where it let something through.

    Source:
        Springenberg et al., Striving for simplicity: the all convolutional net, ICLR workshop 2015, section 3.4.
    """
    found: Tensor = _Guided.apply(values)
    return found


def deconvolved(values: Tensor) -> Tensor:
    """ReLU that rectifies the signal on its way back, whatever came forwards.

    Source:
        Zeiler & Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 2.1. The switches of
        max pooling and the transposed filters are what differentiation does by itself.
    """
    found: Tensor = _Deconvolved.apply(values)
    return found


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        passed: Tensor = gradients[0].clamp_min(0) * (values > 0)
        return passed


class _Deconvolved(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return values.clamp_min(0)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp_min(0)


def relus(network: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a traced network that are a ReLU or ReLU6, whether a module or a function."""
    return [node for node in network.graph.nodes if _is_relu(network, node) or _is_relu6(network, node)]


def _is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))) is nn.ReLU
    if node.op == "call_method":
        return node.target == "relu"
    return node.op == "call_function" and node.target in (torch.relu, F.relu)


def _is_relu6(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))) is nn.ReLU6
    return node.op == "call_function" and node.target is F.relu6


def with_other_relus(network: fx.GraphModule, other: Any) -> fx.GraphModule:
    """A copy of a network, weights shared, in which a function takes the place of every ReLU.

    Other activations, as the Hardswish beside MobileNetV3's ReLUs, let back their plain gradient.

    Args:
        other: tensor -> tensor; what it does backwards is the point of it.

    Raises:
        UsageError: it has no ReLU, so that the result would be the plain gradient under another name.
    """
    found = relus(network)
    if not found:
        raise UsageError(
            "this network has no ReLU, and the deconvnet and guided backpropagation are about ReLUs; use the gradient"
        )
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(network.graph, copies)
    graph.output(result)
    for node in found:
        copy = copies[node]
        with graph.inserting_after(copy):
            replaced = graph.call_function(other, (copy.args[0],))
        if _is_relu6(network, node):  # what is above 6 is cut off, and lets nothing back
            with graph.inserting_after(replaced):
                replaced = graph.call_function(torch.clamp_max, (replaced, 6.0))
        copy.replace_all_uses_with(replaced)
        graph.erase_node(copy)
    changed = fx.GraphModule(network, graph)
    changed.recompile()
    return changed.eval()
