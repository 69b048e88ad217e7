"""The receptive field of every kind of operation."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


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
_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Dropout, nn.Identity,
    nn.BatchNorm2d, nn.LocalResponseNorm,
)  # fmt: skip
# torchvision's own modules, by name: it is not loaded for networks without them.
_POINTWISE_OF_TORCHVISION = {"StochasticDepth", "FrozenBatchNorm2d"}
_POINTWISE_FUNCTIONS = {
    F.relu, F.relu6, F.dropout, F.hardswish, F.silu, F.gelu, F.sigmoid, F.batch_norm, torch.relu, torch.sigmoid,
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.mul, torch.cat,
    torch.softmax,
}  # fmt: skip
_WINDOW_FUNCTIONS = {"max_pool2d", "avg_pool2d"}
# They pick, split, stack or shuffle channels and leave height and width alone if those come out as they went in.
_CHANNEL_FUNCTIONS = {"getitem", "unsqueeze", "chunk", "view", "reshape", "transpose", "contiguous"}


def pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _window(field: Field, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> Field:
    k, s, p, d = pair(kernel), pair(stride), pair(padding), pair(dilation)
    return replace(
        field,
        vertical=field.vertical.window(k[0], s[0], p[0], d[0]),
        horizontal=field.horizontal.window(k[1], s[1], p[1], d[1]),
    )


def module_field(
    module: nn.Module, field: Field, shape_in: tuple[int, ...], shape_out: tuple[int, ...]
) -> Field | None:
    name = type(module).__name__
    if (window := getattr(module, "window", None)) is not None and not field.whole:  # one of featx's own
        return _window(field, *window)
    if name == "SqueezeExcitation":
        return WHOLE  # its scale looks at every pixel
    if isinstance(module, nn.Sequential):
        return _sequential_field(module, field, shape_in, shape_out)
    if (
        field.whole
        or isinstance(module, _POINTWISE)
        or hasattr(module, "pointwise")
        or name in _POINTWISE_OF_TORCHVISION
    ):
        return field
    if isinstance(module, nn.LayerNorm | nn.Linear) and field.channels_last and name != "LayerNorm2d":
        return field
    if name == "LayerNorm2d":
        return field
    if name == "Permute":
        return _permuted(field, list(module.dims))  # type: ignore[arg-type]  # a list of int
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
        result = module_field(child, result, shape_in, shape_out)
    return result


def function_field(
    node: fx.Node, field: Field, shape_in: tuple[int, ...], shape_out: tuple[int, ...]
) -> Field | None:
    target, name = node.target, getattr(node.target, "__name__", str(node.target))
    if field.whole or target in _POINTWISE_FUNCTIONS or name == "stochastic_depth":
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
