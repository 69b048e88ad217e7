"""What every node of a network produces: shape, receptive field, parameters, multiply-adds.

Receptive fields follow the standard arithmetic (Araujo et al., "Computing Receptive Fields of Convolutional
Neural Networks", Distill 2019): a window of k values, dilation d, stride s and padding p over units that see r
pixels, j pixels apart, gives units that see r + d (k - 1) j pixels, j s apart, starting p j further left.
Branches that meet see the union of what they saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from featx.networks.graph.layout import OTHER, find_layouts
from featx.networks.graph.receptive_field import Field, function_field, module_field, pair

PROBE_BATCH = 2  # images in the shape run: tells batch dimensions from constants


@dataclass(frozen=True)
class NodeGeometry:
    """What one node produces per image.

    Attributes:
        shape: without the batch dimension: (C, H, W), (D,) or whatever the node gives.
        field: receptive field; None where the arithmetic does not apply (attention, shifted windows).
        parameters: of this node alone.
        is_layer: it holds float values for each image; false for sizes, masks and other by-products.
        layout: what the axes of `shape` are, see `featx.networks.graph.layout`.
    """

    shape: tuple[int, ...]
    field: Field | None
    parameters: int
    is_layer: bool
    layout: str = OTHER


def measure_nodes(traced: fx.GraphModule, side: int) -> dict[fx.Node, NodeGeometry]:
    """The geometry of every node of a network.

    Args:
        traced: a graph on the meta device: nothing is computed, only shapes. One with values is run on zeros.
        side: input height and width in pixels.

    Errors:
        RuntimeError from torch when the input is too small for the network, or does not fit its linear layers.
    """
    run = _Measure(traced)
    _run_without_values(run, side)
    layouts = find_layouts(traced, run.shapes, set(run.fields))
    return {
        node: replace(geometry, layout=layouts[node]) if node in layouts else geometry
        for node, geometry in run.geometry.items()
    }


def _run_without_values(run: fx.Interpreter, side: int) -> None:
    """Run it on the device its parameters are on: meta, unless its modules decide by values."""
    device = next((parameter.device for parameter in run.module.parameters()), torch.device("meta"))
    with torch.no_grad():
        run.run(torch.zeros(PROBE_BATCH, 3, side, side, device=device))


class _Measure(fx.Interpreter):
    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.geometry: dict[fx.Node, NodeGeometry] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.fields: dict[fx.Node, Field | None] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.op == "output":
            return value
        # The pieces of a chunk or split are alike in what they see; attention gives (values, weights).
        first = value[0] if isinstance(value, tuple | list) and value else value
        per_image = isinstance(first, Tensor) and first.is_floating_point() and first.ndim >= 2
        if isinstance(first, Tensor):
            self.shapes[node] = tuple(first.shape)
        if per_image and first.shape[0] == PROBE_BATCH:
            self.fields[node] = self._field(node)
        self.geometry[node] = NodeGeometry(
            shape=self.shapes.get(node, ())[1:],
            field=self.fields.get(node),
            parameters=self._parameters(node),
            is_layer=node in self.fields and first is value,
        )
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # For the shape of a convolution PyTorch loads its compiler and SymPy: a second and 300 MB.
        module, values = self.fetch_attr(target), args[0] if args else None
        if isinstance(values, Tensor) and values.is_meta and (shape := output_shape(module, values.shape)):
            return values.new_empty(shape)
        return super().call_module(target, args, kwargs)

    def _parameters(self, node: fx.Node) -> int:
        own = [self.fetch_attr(str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
        count = sum(p.numel() for p in own if isinstance(p, nn.Parameter))
        if node.op == "call_module":
            count += sum(p.numel() for p in self.fetch_attr(str(node.target)).parameters())
        return count

    def _field(self, node: fx.Node) -> Field | None:
        if node.op == "placeholder":
            return Field()
        inputs = [n for n in node.all_input_nodes if n in self.fields]
        seen = [self.fields[n] for n in inputs]
        if not seen or None in seen:
            return None
        field = seen[0]
        for other in seen[1:]:
            field = field.union(other) if field and other else None
        if field is None:
            return None
        shape_in, shape_out = self.shapes[inputs[0]], self.shapes[node]
        if node.op == "call_module":
            return module_field(self.fetch_attr(str(node.target)), field, shape_in, shape_out)
        return function_field(node, field, shape_in, shape_out)


_SAME_SHAPE = (nn.ReLU, nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d)


def output_shape(module: nn.Module, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The shape that the modules of AlexNet and VGG make of an input shape: (W - F + 2 P) / S + 1 and the like.

    None for other modules, and for inputs that do not fit.
    """
    if type(module) in _SAME_SHAPE:
        return tuple(shape)
    if type(module) is nn.Linear:
        return (*shape[:-1], module.out_features) if shape[-1] == module.in_features else None
    if len(shape) != 4:
        return None
    if type(module) is nn.AdaptiveAvgPool2d:
        height, width = pair(module.output_size)
        return None if height is None or width is None else (*shape[:2], height, width)
    if type(module) is nn.Conv2d:
        if shape[1] != module.in_channels or isinstance(module.padding, str):
            return None
        channels = module.out_channels
    elif type(module) is nn.MaxPool2d and not (module.ceil_mode or module.return_indices):
        channels = shape[1]
    else:
        return None
    sides = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(
            shape[2:], pair(module.kernel_size), pair(module.stride), pair(module.padding), pair(module.dilation),
            strict=True,
        )
    ]  # fmt: skip
    return (shape[0], channels, *sides) if min(sides) > 0 else None


def ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and everything it is computed from."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
    return found


def count_multiply_adds(traced: fx.GraphModule, side: int) -> dict[fx.Node, int]:
    """Of every node alone, per image; arguments as for `measure_nodes`."""
    run = _Count(traced)
    _run_without_values(run, side)
    return run.multiply_adds


class _Count(fx.Interpreter):
    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.multiply_adds: dict[fx.Node, int] = {}

    def run_node(self, node: fx.Node) -> Any:
        from torch.utils.flop_counter import FlopCounterMode  # loads Triton: 80 MB, and only a table needs it

        with FlopCounterMode(display=False) as counter:
            value = super().run_node(node)
        self.multiply_adds[node] = counter.get_total_flops() // 2 // PROBE_BATCH
        return value
