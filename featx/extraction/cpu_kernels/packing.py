"""Run a network's convolutions and linear layers on a CPU with weights laid out once for the processor.

PyTorch's own modules hand their weights to oneDNN, or to MKL, in the layout of training: they are rearranged on every
call, the ReLU behind them is a pass of its own, and MKL leaves half of an AMD core unused. Here the weights are
rearranged once, the originals are freed, and the ReLU is part of the product: the same sums, rounded in another
order. Convolutions of 3 x 3 and 5 x 5 over many channels become fewer products: see `winograd` and `fourier`.

The operators are those that torch.compile emits. They are private to PyTorch: where they are missing, or give
something else than the modules do, the network stays as it was.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from featx.extraction.cpu_kernels.fourier import FourierConvolution, is_fouriers
from featx.extraction.cpu_kernels.winograd import WinogradConvolution, is_winograds

# Of a layer's maximum. Looser than any rounding: it is to find operators that have come to mean something else.
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
TRIED = 64  # outputs of a layer
FEWEST_ROWS = 4  # of a linear layer's product: with fewer, rows have other bits than in a larger block
_MANY_ROWS, _TRIED_WIDTH = 128, 256  # of the products that show how many rows have the same bits
_RELUS = (torch.relu, nn.functional.relu, "relu")


def pack(network: fx.GraphModule, example: Tensor, batch_size: int) -> fx.GraphModule | None:
    """The same network with packed layers. The layers of `network` are freed as they are packed.

    Args:
        network: (B, 3, H, W) -> {layer: activations}, on the CPU, float32 or bfloat16, channels last, eval mode.
        example: (1, 3, H, W) on which every packed layer must agree with the plain one.
        batch_size: B of the blocks to come.

    Returns:
        None if there is nothing to pack, or this PyTorch cannot, or does something else; `network` is as it was.
    """
    packed = _with_packed_layers(network)
    if packed is None:
        return None
    try:
        _Trial(packed).run(example)
    except (_Disagreement, AttributeError, NotImplementedError, RuntimeError):
        return None
    # Now, before blocks need memory of their own: for a moment there are two of a layer, and fc6 is large. For full
    # blocks: what is laid out for one image costs a full block more than the other way round.
    layers = [layer for layer in packed.modules() if isinstance(layer, _Packed)]
    uses = Counter(layer.plain for layer in layers)
    for layer in layers:
        plain = layer.plain
        layer.prepare(batch_size)
        uses[plain] -= 1
        if plain is not None and not uses[plain]:
            # Whoever still holds the layer (a traced network refers to itself) must not hold its weights.
            plain.weight = None  # type: ignore[assignment]  # nn.Module allows it
    return packed


class _Disagreement(Exception):
    """A packed layer gives something else than the plain one."""


class _Packed(nn.Module):
    """A convolution or linear layer, and the ReLU behind it if there is one.

    Attributes:
        shape: (1, ...) of its input for one image, once the trial has seen it.
    """

    def __init__(self, plain: nn.Conv2d | nn.Linear, *, relu: bool) -> None:
        super().__init__()
        self.plain: nn.Conv2d | nn.Linear | None = plain
        self.relu = relu
        self._by_winograd, self._by_fourier = is_winograds(plain), is_fouriers(plain)
        self.shape: tuple[int, ...] = ()
        self._run: Callable[[Tensor], Tensor] | None = None

    def forward(self, values: Tensor) -> Tensor:
        assert self._run is not None, "prepare first"
        return self._run(values)

    def prepare(self, batch_size: int) -> None:
        """Lay the weights out for blocks of this size, and free those that are not."""
        assert self.plain is not None
        self._run, self.plain = self.packed_for(self.plain, (batch_size, *self.shape[1:])), None

    def packed_for(self, plain: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """The layer with its weights laid out for blocks of this shape."""
        operators: Any = torch.ops.mkldnn
        bias, activation = plain.bias, "relu" if self.relu else "none"
        if isinstance(plain, nn.Linear):
            return _product(plain.weight, bias, shape[0], activation)
        if self._by_winograd:
            return WinogradConvolution(plain, relu=self.relu, pack=_product)
        if self._by_fourier:
            return FourierConvolution(plain, shape, relu=self.relu)
        how = plain.padding, plain.stride, plain.dilation, plain.groups
        laid_out = operators._reorder_convolution_weight(plain.weight, *how, list(shape))
        return lambda x: operators._convolution_pointwise(x, laid_out, bias, *how, activation, [], "")


def _product(weights: Tensor, bias: Tensor | None, rows: int, activation: str = "none") -> Callable[[Tensor], Tensor]:
    """(rows, C) -> (rows, K) with weights (K, C), laid out for about so many rows."""
    operators: Any = torch.ops.mkldnn
    laid_out = operators._reorder_linear_weight(weights, rows)

    def product(values: Tensor) -> Tensor:
        count = values[..., 0].numel()
        steady = steady_rows(count, values.dtype)
        if steady == count:
            found: Tensor = operators._linear_pointwise(values, laid_out, bias, activation, [], "")
            return found
        padded = values.new_zeros(steady, values.shape[-1])
        padded[:count] = values.reshape(count, -1)
        rows: Tensor = operators._linear_pointwise(padded, laid_out, bias, activation, [], "")[:count]
        return rows.view(*values.shape[:-1], -1)

    return product


@functools.cache
def steady_rows(count: int, dtype: torch.dtype) -> int:
    """How many rows a product needs, at least `count`, for these to have the bits they have in any larger one.

    A processor's kernels take several rows at once, and what is left over at the end, or a single row, may be added
    up in another order: with PyTorch 2.11 and AVX2 one to three rows behind the last six. Found out by a product of
    equal rows, whose results are equal where they were computed alike.
    """
    operators: Any = torch.ops.mkldnn
    generator = torch.Generator().manual_seed(0)
    row, weights = (torch.randn(size, _TRIED_WIDTH, generator=generator).to(dtype) for size in (1, TRIED))
    laid_out = operators._reorder_linear_weight(weights, TRIED)

    def rows_of(rows: int) -> Tensor:
        found: Tensor = operators._linear_pointwise(row.repeat(rows, 1), laid_out, None, "none", [], "")
        return found

    usual = rows_of(_MANY_ROWS)[0]
    least = max(count, FEWEST_ROWS)
    for rows in range(least, least + _MANY_ROWS):
        if torch.equal(rows_of(rows)[:count], usual.expand(count, -1)):
            return rows
    return least


class _Trial(fx.Interpreter):
    """Runs the plain layers and compares each with its packed form."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.fetch_attr(target)
        if not isinstance(layer, _Packed):
            return super().call_module(target, args, kwargs)
        assert layer.plain is not None
        layer.shape = tuple(args[0].shape)
        outputs = layer.plain(args[0])
        outputs = outputs.relu() if layer.relu else outputs
        found = layer.packed_for(_first_outputs(layer.plain), tuple(args[0].shape))(args[0])
        is_map = isinstance(layer.plain, nn.Conv2d)
        expected = outputs[:, : found.shape[1]] if is_map else outputs[..., : found.shape[-1]]
        allowed = AGREEMENT[expected.dtype] * float(expected.abs().max())
        if found.shape != expected.shape or not float((found - expected).abs().max()) <= allowed:
            raise _Disagreement(target)
        return outputs


def _first_outputs(plain: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Enough of a layer to see whether packing does what it should: fc6 of VGG16 has 400 MB of weights."""
    if isinstance(plain, nn.Linear):
        part: nn.Conv2d | nn.Linear = nn.Linear(
            plain.in_features, min(TRIED, plain.out_features), bias=plain.bias is not None, device="meta"
        )
    elif plain.groups == 1:
        convolution: Any = nn.Conv2d  # its arguments are typed more narrowly than its attributes
        part = convolution(
            plain.in_channels, min(TRIED, plain.out_channels), plain.kernel_size, plain.stride, plain.padding,
            plain.dilation, bias=plain.bias is not None, device="meta",
        )  # fmt: skip
    else:
        return plain
    part.weight = nn.Parameter(plain.weight[:TRIED], requires_grad=False)
    if plain.bias is not None:
        part.bias = nn.Parameter(plain.bias[:TRIED], requires_grad=False)
    return part


def _with_packed_layers(network: fx.GraphModule) -> fx.GraphModule | None:
    graph = fx.Graph()
    output = graph.graph_copy(network.graph, {})
    graph.output(output)
    modules: dict[str, nn.Module | Tensor] = {}
    count = 0
    for node in list(graph.nodes):
        if node.op == "get_attr":
            modules[node.target] = _attribute(network, node.target)
        if node.op != "call_module":
            continue
        module = network.get_submodule(node.target)
        modules[node.target] = module
        if not isinstance(module, nn.Conv2d | nn.Linear) or not _packable(module):
            continue
        follower = _only_relu_behind(node, network)
        if follower is not None:
            follower.replace_all_uses_with(node)
            graph.erase_node(follower)
        count += 1
        # A module that is called in two places sees blocks of two sizes: each place has a packed layer of its own.
        node.target = f"packed{count}"
        modules[node.target] = _Packed(module, relu=follower is not None)
    return fx.GraphModule(modules, graph) if count else None


def _packable(module: nn.Conv2d | nn.Linear) -> bool:
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear  # a class derived from it may compute something else


def _only_relu_behind(node: fx.Node, network: fx.GraphModule) -> fx.Node | None:
    """The ReLU that alone uses a node's output; a value that is captured or used elsewhere is kept as it is."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.op == "call_module":
        return user if type(network.get_submodule(str(user.target))) is nn.ReLU else None
    return user if user.op in ("call_function", "call_method") and user.target in _RELUS else None


def _attribute(network: nn.Module, target: str) -> Any:
    value: Any = network
    for part in target.split("."):
        value = getattr(value, part)
    return value
