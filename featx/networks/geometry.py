"""What every node of a network produces: shape, receptive field, parameters, multiply-adds.

Receptive fields follow the standard arithmetic (Araujo et al., "Computing Receptive Fields of Convolutional
Neural Networks", Distill 2019): a window of k values, dilation d, stride s and padding p over units that see r
pixels, j pixels apart, gives units that see r + d (k - 1) j pixels, j s apart, starting p j further left.
Branches that meet see the union of what they saw.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision import ops
from torchvision.models.convnext import LayerNorm2d

from featx.lean_import import want_meta_kernels

PROBE_BATCH = 2  # images in the shape run: tells batch dimensions from constants


@dataclass(frozen=True)
class Span:
    """What the units along one axis see of the input: `size` pixels each, `stride` apart, the first at `start`."""

    size: int = 1
    stride: int = 1
    start: int = 0

    def window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Span:
        return Span(
            self.size + dilation * (kernel - 1) * self.stride,
            self.stride * stride,
            self.start - padding * self.stride,
        )

    def union(self, other: Span) -> Span:
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return Span(end - start, max(self.stride, other.stride), start)


@dataclass(frozen=True)
class Field:
    """The receptive field of a node's units; `whole` when every unit sees the whole image.

    `channels_last` marks maps that a Permute has turned into (H, W, C), as in ConvNeXt's blocks.
    """

    vertical: Span = Span()
    horizontal: Span = Span()
    whole: bool = False
    channels_last: bool = False

    def union(self, other: Field) -> Field:
        if self.whole or other.whole:
            return replace(self, whole=True)
        return replace(
            self,
            vertical=self.vertical.union(other.vertical),
            horizontal=self.horizontal.union(other.horizontal),
        )


WHOLE = Field(whole=True)


@dataclass(frozen=True)
class NodeGeometry:
    """What one node produces per image.

    Attributes:
        shape: without the batch dimension: (C, H, W), (D,) or whatever the node gives.
        field: receptive field; None where the arithmetic does not apply (attention, shifted windows).
        parameters: of this node alone.
        is_layer: it holds float values for each image; false for sizes, masks and other by-products.
        is_map: the shape is (C, H, W) with H and W running over the image.
    """

    shape: tuple[int, ...]
    field: Field | None
    parameters: int
    is_layer: bool

    @property
    def is_map(self) -> bool:
        return len(self.shape) == 3 and self.field is not None and not self.field.channels_last


def measure_nodes(traced: fx.GraphModule, side: int) -> dict[fx.Node, NodeGeometry]:
    """The geometry of every node of a network.

    Args:
        traced: a graph on the meta device: nothing is computed, only shapes.
        side: input height and width in pixels.

    Errors:
        RuntimeError from torch when the input is too small for the network, or does not fit its linear layers.
    """
    run = _Measure(traced)
    _run_without_values(run, side)
    return run.geometry


def _run_without_values(run: fx.Interpreter, side: int) -> None:
    with torch.no_grad():
        run.run(torch.empty(PROBE_BATCH, 3, side, side, device="meta"))


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
        # For these shapes PyTorch would load SymPy or its meta kernels, which takes longer than all that is here.
        module, values = self.fetch_attr(target), args[0] if args else None
        if type(module) in (nn.ReLU, nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d):
            return values
        if isinstance(values, Tensor) and (shape := _shape_behind(module, values.shape)):
            return values.new_empty(shape)
        want_meta_kernels()
        return super().call_module(target, args, kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is not torch.flatten:
            want_meta_kernels()
        return super().call_function(target, args, kwargs)

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
            return _module_field(self.fetch_attr(str(node.target)), field, shape_in, shape_out)
        return _function_field(node, field, shape_in, shape_out)


def _shape_behind(module: nn.Module, shape: torch.Size) -> tuple[int, ...] | None:
    """What AlexNet's and VGG's modules make of a shape; None for others, and for what does not fit."""
    if type(module) is nn.Linear:
        return (*shape[:-1], module.out_features) if shape[-1] == module.in_features else None
    if len(shape) != 4:
        return None
    if type(module) is nn.AdaptiveAvgPool2d:
        high, wide = _pair(module.output_size)
        return None if high is None or wide is None else (*shape[:2], high, wide)
    if type(module) is nn.Conv2d:
        if shape[1] != module.in_channels or isinstance(module.padding, str):
            return None
        channels, dilation = module.out_channels, _pair(module.dilation)
    elif type(module) is nn.MaxPool2d and not (module.ceil_mode or module.return_indices):
        channels, dilation = shape[1], _pair(module.dilation)
    else:
        return None
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    sides = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    return (shape[0], channels, *sides) if min(sides) > 0 else None


_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Dropout, nn.Identity,
    nn.BatchNorm2d, ops.StochasticDepth, ops.FrozenBatchNorm2d,
)  # fmt: skip
_POINTWISE_FUNCTIONS = {
    F.relu, F.relu6, F.dropout, F.hardswish, F.silu, F.gelu, F.sigmoid, F.batch_norm, torch.relu, torch.sigmoid,
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.mul, torch.cat,
    ops.stochastic_depth, torch.softmax,
}  # fmt: skip
_WINDOW_FUNCTIONS = {"max_pool2d", "avg_pool2d"}
# They pick, split, stack or shuffle channels and leave height and width alone if those come out as they went in.
_CHANNEL_FUNCTIONS = {"getitem", "unsqueeze", "chunk", "view", "reshape", "transpose", "contiguous"}


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _window(field: Field, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> Field:
    k, s, p, d = _pair(kernel), _pair(stride), _pair(padding), _pair(dilation)
    return replace(
        field,
        vertical=field.vertical.window(k[0], s[0], p[0], d[0]),
        horizontal=field.horizontal.window(k[1], s[1], p[1], d[1]),
    )


def _module_field(
    module: nn.Module, field: Field, shape_in: tuple[int, ...], shape_out: tuple[int, ...]
) -> Field | None:
    if isinstance(module, ops.SqueezeExcitation):
        return WHOLE  # its scale looks at every pixel
    if isinstance(module, nn.Sequential):
        return _sequential_field(module, field, shape_in, shape_out)
    if field.whole or isinstance(module, _POINTWISE):
        return field
    if isinstance(module, nn.LayerNorm | nn.Linear | ops.MLP) and field.channels_last:
        return field
    if isinstance(module, LayerNorm2d):
        return field
    if isinstance(module, ops.Permute):
        return _permuted(field, module.dims)
    if isinstance(module, nn.Conv2d):
        return _window(field, module.kernel_size, module.stride, module.padding, module.dilation)
    if isinstance(module, nn.MaxPool2d):
        return _window(field, module.kernel_size, module.stride, module.padding, module.dilation)
    if isinstance(module, nn.AvgPool2d):
        return _window(field, module.kernel_size, module.stride, module.padding)
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return _adaptive(field, shape_in, shape_out)
    if isinstance(module, nn.Flatten):
        return _flattened(field, shape_in)
    return None


def _sequential_field(
    module: nn.Sequential, field: Field, shape_in: tuple[int, ...], shape_out: tuple[int, ...]
) -> Field | None:
    result: Field | None = field
    for child in module:
        if result is None or isinstance(child, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d | nn.Flatten):
            return None  # the shapes inside a leaf are not known here
        result = _module_field(child, result, shape_in, shape_out)
    return result


def _function_field(
    node: fx.Node, field: Field, shape_in: tuple[int, ...], shape_out: tuple[int, ...]
) -> Field | None:
    target, name = node.target, getattr(node.target, "__name__", str(node.target))
    if field.whole or target in _POINTWISE_FUNCTIONS:
        return field
    if target is F.layer_norm and field.channels_last:
        return field
    if name == "permute":
        dims: Any = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return _permuted(field, list(dims))
    if target in (torch.flatten, "flatten"):
        return _flattened(field, shape_in)
    if target in (torch.mean, "mean") and set(_mean_dims(node)) in ({2, 3}, {-1, -2}):
        return WHOLE
    if name == "adaptive_avg_pool2d":
        return _adaptive(field, shape_in, shape_out)
    if name in _WINDOW_FUNCTIONS or target is F.max_pool2d:
        return _pool_function(node, field)
    if name in _CHANNEL_FUNCTIONS and shape_in[-2:] == shape_out[-2:]:
        return field
    return None


def _mean_dims(node: fx.Node) -> tuple[int, ...]:
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
    return tuple(dims) if isinstance(dims, tuple | list) else (dims,)


def _pool_function(node: fx.Node, field: Field) -> Field | None:
    names = ("input", "kernel_size", "stride", "padding")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if "kernel_size" not in given:
        return None
    stride = given.get("stride")
    kernel = given["kernel_size"]
    return _window(field, kernel, kernel if stride is None else stride, given.get("padding", 0))


def _permuted(field: Field, dims: list[int]) -> Field | None:
    if dims == [0, 2, 3, 1] and not field.channels_last:
        return replace(field, channels_last=True)
    if dims == [0, 3, 1, 2] and field.channels_last:
        return replace(field, channels_last=False)
    return None


def _flattened(field: Field, shape_in: tuple[int, ...]) -> Field | None:
    # Flattened values keep the field of the place they came from; what is built on them sees everything.
    return WHOLE if len(shape_in) == 4 else None


def _adaptive(field: Field, shape_in: tuple[int, ...], shape_out: tuple[int, ...]) -> Field:
    """Adaptive pooling n -> m: output i covers inputs floor(i n / m) up to ceil((i + 1) n / m)."""
    kernels, strides = [], []
    for n, m in zip(shape_in[-2:], shape_out[-2:], strict=True):
        kernels.append(max(-(-((i + 1) * n) // m) - (i * n) // m for i in range(m)))
        strides.append(max(1, n // m))
    if shape_out[-2:] == (1, 1):
        return WHOLE
    return _window(field, kernels, strides, 0)


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
    want_meta_kernels()
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
