"""What the axes of an activation are: channels, height and width, positions, or nothing that can be pooled.

Shapes do not say it: (56, 56, 96) is a Swin map with its channels last, (64, 49, 64) are MaxViT's windows. So axes
are followed through the graph from the pixels, and back from the convolutions and poolings that need (C, H, W).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

# The layouts of one image's values. The class token of "class+tokens" is the first.
MAP, CHANNELS_LAST, TOKENS, CLASS_AND_TOKENS, VECTOR, OTHER = (
    "C H W", "H W C", "tokens", "class+tokens", "vector", "other",
)  # fmt: skip
_AXES = {
    ("C", "H", "W"): MAP, ("H", "W", "C"): CHANNELS_LAST, ("P", "C"): TOKENS, ("T", "C"): CLASS_AND_TOKENS,
}  # fmt: skip
Axes = tuple[str, ...] | None  # one letter for each axis but the batch; T: tokens with a class token before them

_NEED_MAPS = (
    nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout2d,
    nn.LocalResponseNorm, nn.GroupNorm,
)  # fmt: skip
_NEED_MAPS_BY_NAME = {"LayerNorm2d", "FrozenBatchNorm2d", "Conv2dNormActivation"}
_FUNCTIONS_OF_MAPS = {
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "conv2d",
    "batch_norm",
}
# Operations whose result has the axes of their first argument that has a value for each image.
_SAME_AXES = {
    "add", "sub", "mul", "truediv", "relu", "relu6", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh",
    "dropout", "softmax", "layer_norm", "contiguous", "clone", "float", "cat", "chunk", "split", "stochastic_depth",
    "shifted_window_attention", "_patch_merging_pad", "linear", "normalize",
}  # fmt: skip


def find_layouts(
    traced: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]], per_image: set[fx.Node]
) -> dict[fx.Node, str]:
    """The layout of every node that has values for each image.

    Args:
        shapes: of the nodes that give tensors, batch first.
        per_image: the nodes whose first axis is the batch.
    """
    run = _Follow(traced, shapes, per_image)
    for _ in range(2):  # channel shuffles are known only by the convolution behind them
        run.forward()
        run.backward()
    return {node: run.layout(node) for node in per_image}


class _Follow:
    def __init__(
        self, traced: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]], per_image: set[fx.Node]
    ) -> None:
        self._traced, self._shapes, self._per_image = traced, shapes, per_image
        self._axes: dict[fx.Node, Axes] = {}

    def layout(self, node: fx.Node) -> str:
        if len(self._shapes[node]) == 2:
            return VECTOR
        return _AXES.get(self._axes.get(node) or (), OTHER)

    def forward(self) -> None:
        for node in self._traced.graph.nodes:
            if node in self._shapes and not self._axes.get(node):
                axes = self._after(node)
                self._axes[node] = axes if axes and len(axes) == len(self._shapes[node]) - 1 else None

    def backward(self) -> None:
        for node in reversed(self._traced.graph.nodes):
            if len(self._shapes.get(node, ())) != 4 or self._axes.get(node):
                continue
            if any(self._needs_maps(user) or self._passes_maps_on(user, node) for user in node.users):
                self._axes[node] = ("C", "H", "W")

    def _needs_maps(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self._traced.get_submodule(str(node.target))
            return isinstance(module, _NEED_MAPS) or type(module).__name__ in _NEED_MAPS_BY_NAME
        return node.op == "call_function" and _name(node) in _FUNCTIONS_OF_MAPS

    def _passes_maps_on(self, user: fx.Node, node: fx.Node) -> bool:
        same = _name(user) in _SAME_AXES or user.target is operator.getitem or self._is_pointwise(user)
        return same and self._axes.get(user) == ("C", "H", "W") and self._first_input(user) is node

    def _first_input(self, node: fx.Node) -> fx.Node | None:
        return next((n for n in node.all_input_nodes if n in self._per_image or n in self._axes), None)

    def _is_pointwise(self, node: fx.Node) -> bool:
        """Any other module that keeps the number of axes: activations, norms, dropout, linear layers, attention."""
        return node.op == "call_module" and not self._needs_maps(node)

    def _after(self, node: fx.Node) -> Axes:
        if node.op == "placeholder" or (self._needs_maps(node) and len(self._shapes[node]) == 4):
            return ("C", "H", "W")
        known = [self._axes[n] for n in node.all_input_nodes if self._axes.get(n) and n in self._per_image]
        before = next((axes for axes in known if axes and len(axes) == len(self._shapes[node]) - 1), None)
        name = _name(node)
        if name in ("permute", "transpose", "swapaxes"):
            return _permuted(self._axes.get(node.all_input_nodes[0]), name, node.args)
        if name in ("reshape", "view", "flatten") or isinstance(self._module(node), nn.Flatten):
            return self._reshaped(node)
        if node.target is operator.getitem:
            return _sliced(before, node.args[1])
        if name == "cat":
            return self._with_class_token(node, before)
        return before if name in _SAME_AXES or self._is_pointwise(node) else None

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._traced.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _reshaped(self, node: fx.Node) -> Axes:
        source = node.all_input_nodes[0]
        before, after = self._shapes.get(source, ()), self._shapes[node]
        if self._axes.get(source) == ("C", "H", "W") and after[:2] == before[:2] and len(after) == 3:
            return ("C", "P")
        return self._axes.get(source) if after == before else None

    def _with_class_token(self, node: fx.Node, axes: Axes) -> Axes:
        """Tokens behind one that is the same for every image are tokens with a class token."""
        tensors: Any = node.args[0]
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if axes != ("P", "C") or dim not in (1, -2) or not isinstance(tensors, Sequence):
            return axes
        first = tensors[0]
        constant = isinstance(first, fx.Node) and not _depends_on_pixels(first)
        return ("T", "C") if constant and self._shapes.get(first, (0, 0))[1] == 1 and len(tensors) == 2 else None


def _depends_on_pixels(node: fx.Node) -> bool:
    """Whether values of the image reach a node; its shape does not count."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current.op == "placeholder":
            return True
        if current.op == "call_method" and current.target == "expand":
            waiting.append(current.all_input_nodes[0])
        else:
            waiting.extend(current.all_input_nodes)
    return False


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def _permuted(axes: Axes, name: str, args: tuple[Any, ...]) -> Axes:
    if not axes:
        return None
    named = ("B", *axes)
    given = args[1] if len(args) == 2 and isinstance(args[1], Sequence) else args[1:]
    if name == "permute":
        order = list(given)
    else:
        order = list(range(len(named)))
        first, second = given
        order[first], order[second] = order[second], order[first]
    if sorted(i % len(named) for i in order) != list(range(len(named))):
        return None
    after = tuple(named[i] for i in order)
    return after[1:] if after[0] == "B" else None


def _sliced(axes: Axes, index: Any) -> Axes:
    """Slices keep every axis; a token that is cut out or taken alone does not leave tokens."""
    if isinstance(index, int):  # one of the pieces of a chunk or split
        return axes
    whole = isinstance(index, tuple) and all(part is Ellipsis or isinstance(part, slice) for part in index)
    return axes if whole and axes and "T" not in axes else None
