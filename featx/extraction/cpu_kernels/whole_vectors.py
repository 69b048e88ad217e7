"""Activations that do not depend on how many images there are.

PyTorch computes sigmoid, tanh, SiLU and GELU several values at once, and what is left at the end of a tensor one by
one, with other rounding. Whether a value is left over depends on the number of images, unless the values of each
image fill whole vectors: so they are made to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from featx.networks.graph.capture import is_opaque

VECTOR = 64  # values: a multiple of what is computed at once


class OneByOne(nn.Module):
    """A module that is given one image after the other: what it does with several at once is not known."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([self.module(values[row : row + 1]) for row in range(len(values))])


def fill_vectors(network: fx.GraphModule) -> None:
    """Change a network in place so that its activations see whole vectors, and others' modules one image at once."""
    for node in list(network.graph.nodes):
        if is_opaque(network, node) and len(node.args) == 1 and not node.kwargs:
            module = network.get_submodule(str(node.target))
            if not isinstance(module, OneByOne):
                network.set_submodule(str(node.target), OneByOne(module))
    for node in list(network.graph.nodes):
        function, named = _steady(network, node)
        if function is None:
            continue
        with network.graph.inserting_after(node):
            steady = network.graph.call_function(function, (node.args[0],), named)
        node.replace_all_uses_with(steady)
        network.graph.erase_node(node)
    network.recompile()


def sigmoid(values: Tensor) -> Tensor:
    return _in_whole_vectors(torch.sigmoid, values)


def tanh(values: Tensor) -> Tensor:
    return _in_whole_vectors(torch.tanh, values)


def silu(values: Tensor) -> Tensor:
    return _in_whole_vectors(F.silu, values)


def gelu(values: Tensor, approximate: str = "none") -> Tensor:
    return _in_whole_vectors(lambda whole: F.gelu(whole, approximate=approximate), values)


_MODULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Sigmoid: sigmoid, nn.Tanh: tanh, nn.SiLU: silu, nn.GELU: gelu
}  # fmt: skip
_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    torch.sigmoid: sigmoid, F.sigmoid: sigmoid, "sigmoid": sigmoid, torch.tanh: tanh, F.tanh: tanh, "tanh": tanh,
    F.silu: silu, F.gelu: gelu,
}  # fmt: skip


def _in_whole_vectors(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """function(values) of (B, ...), each image filled up with zeros to whole vectors."""
    count = values[0].numel() if len(values) else 0
    if count % VECTOR == 0:
        return function(values)
    whole = F.pad(values.reshape(len(values), count), (0, -count % VECTOR))
    return function(whole)[:, :count].reshape(values.shape)


def _steady(network: fx.GraphModule, node: fx.Node) -> tuple[Callable[..., Tensor] | None, dict[str, Any]]:
    """The function here that computes what a node does, and its options; None for other nodes."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        options: dict[str, Any] = {"approximate": module.approximate} if isinstance(module, nn.GELU) else {}
        return _MODULES.get(type(module)), options
    options = {"approximate": node.kwargs["approximate"]} if "approximate" in node.kwargs else {}
    return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None, options
