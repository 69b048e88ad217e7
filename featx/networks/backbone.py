"""A name becomes a network: its layers and their geometry, its weights, its preprocessing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import fx, nn

from featx.errors import UsageError
from featx.networks.build import construct, final_layer
from featx.networks.graph.capture import trace_nodes
from featx.networks.graph.geometry import NodeGeometry, ancestors, count_multiply_adds, measure_nodes
from featx.networks.graph.tracing import first_of_several, output_of, own_names
from featx.networks.layer_names import LOGITS, PENULTIMATE, PRE, PROB, SOFTMAX, Layer, LayerNames, node_layers
from featx.networks.registry import architecture, chain, default_preprocessing, literature_layers
from featx.networks.run_folder import is_run, read_run


@dataclass(frozen=True)
class LayerInfo:
    """One row of `featx layers`.

    Attributes:
        shape: values per image, (C, H, W) or (D,).
        layout: what the axes are: "C H W", "H W C", "tokens", "class+tokens" (class token first), "vector", "other".
        bytes_per_image: as float32.
        receptive_field: (height, width) in input pixels; None if the whole image or unknown, see `sees`.
        stride: (vertical, horizontal) input pixels between neighbouring values, None as above.
        sees: "window", "whole" or "unknown".
        parameters: of this layer: those between it and the rows before.
        multiply_adds: per image, from the pixels up to and including this layer.
    """

    name: str
    node: str
    relu: str
    shape: tuple[int, ...]
    layout: str
    bytes_per_image: int
    receptive_field: tuple[int, int] | None
    stride: tuple[int, int] | None
    sees: str
    parameters: int
    multiply_adds: int

    @property
    def values(self) -> int:
        return self.bytes_per_image // 4


class Backbone:
    """A network described without weights: names, layers, geometry, default preprocessing.

    >>> [layer.name for layer in Backbone("alexnet").names.resolve("conv4-conv5,fc*")]
    ['conv4', 'conv5', 'fc6', 'fc7', 'fc8']
    """

    def __init__(self, name: str, side: int | None = None, published: str | None = None) -> None:
        """Describe network `name` for square inputs of `side` pixels, by default the weights' own crop.

        Args:
            published: the torchvision weights whose network and preprocessing are meant; by default DEFAULT.
        """
        self.name = name
        values = architecture(name).external == "code"
        self._network = construct(name, 0 if values else None, published)
        self.preprocessing = default_preprocessing(name, published)
        self.side = side or self.preprocessing["crop"]
        self._traced, self.nodes = trace_nodes(self._network)

    @cached_property
    def geometry(self) -> dict[fx.Node, NodeGeometry]:
        try:
            return measure_nodes(self._traced, self.side)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"{self.name} cannot take images of {self.side} x {self.side} pixels: what its layers leave of them "
                f"does not fit the next one. Its weights were made for --crop {self.preprocessing['crop']}"
            ) from error

    @cached_property
    def _multiply_adds(self) -> dict[fx.Node, int]:
        return count_multiply_adds(self._traced, self.side)

    def geometry_of(self, layer: Layer) -> NodeGeometry:
        """What the layer's node produces per image."""
        return self.geometry[self.nodes[layer.node.removesuffix(SOFTMAX)]]

    @cached_property
    def names(self) -> LayerNames:
        own = own_names(self.nodes)
        usable = {name: node for node, name in own.items() if self.geometry[node].is_layer}
        relus = frozenset(n for n, node in usable.items() if self._is_relu(node))
        before = frozenset(
            n for n, node in usable.items() if node.users and all(self._is_relu(u) for u in node.users)
        )
        by_node = {layer.name: layer for layer in node_layers(usable, relus, before)}
        literature = literature_layers(self._network)
        if literature:
            main = [Layer(one.name, one.node, "after" if one.before_relu else "none") for one in literature]
        else:
            main = [layer for layer in by_node.values() if self.nodes[layer.node].op != "placeholder"]
        others = {
            one.name + PRE: Layer(one.name + PRE, one.before_relu, "before") for one in literature if one.before_relu
        }
        last = own[output_of(self._traced)]
        others[LOGITS] = Layer(LOGITS, last, "none")
        if not is_run(self.name) or read_run(self.name).task == "classes":  # else their softmax means nothing
            others[PROB] = Layer(PROB, last + SOFTMAX, "none")
        penultimate = self._input_of_final_layer() or last
        if penultimate in by_node:
            others[PENULTIMATE] = Layer(PENULTIMATE, penultimate, by_node[penultimate].relu)
        return LayerNames(self.name, tuple(main), self._modules(own, by_node) | by_node | others)

    def _modules(self, own: dict[fx.Node, str], by_node: dict[str, Layer]) -> dict[str, Layer]:
        """The modules that contain others, and those that return several values, as layers."""
        if chain(self._network) is not None:  # traced by torch.fx, which records no containers
            return _containers(by_node)
        found = {}
        for name, node in self.nodes.items():
            layer = by_node.get(own.get(first_of_several(node), ""))
            if layer is not None and layer.name != name:
                found[name] = Layer(name, layer.node, layer.relu)
        return found

    def _input_of_final_layer(self) -> str:
        """The node that feeds the layer that makes the logits; empty if there is none."""
        try:
            final = self.nodes.get(final_layer(self._network))
        except UsageError:
            return ""
        return "" if final is None else own_names(self.nodes).get(final.all_input_nodes[0], "")

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._traced.get_submodule(str(node.target)), nn.ReLU | nn.ReLU6)
        return getattr(node.target, "__name__", "") in ("relu", "relu6")

    def window_of(self, layer: Layer) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Receptive field and stride of a layer's values, (height, width) each in input pixels.

        None if they see the whole image, or where the arithmetic does not apply.
        """
        field = self.geometry_of(layer).field
        if field is None or field.whole:
            return None
        vertical, horizontal = field.vertical, field.horizontal
        return (vertical.size, horizontal.size), (vertical.stride, horizontal.stride)

    def describe(self, layers: Iterable[Layer]) -> list[LayerInfo]:
        """The table rows of some layers, in the order given."""
        rows: list[LayerInfo] = []
        counted: set[fx.Node] = set()
        for layer in layers:
            node = self.nodes[layer.node.removesuffix(SOFTMAX)]
            geometry = self.geometry[node]
            upstream = ancestors(node)
            new = [self.geometry[n].parameters for n in upstream - counted]
            counted |= upstream
            field, window = geometry.field, self.window_of(layer)
            rows.append(
                LayerInfo(
                    name=layer.name,
                    node=layer.node,
                    relu=layer.relu,
                    shape=geometry.shape,
                    layout=geometry.layout,
                    bytes_per_image=4 * _product(geometry.shape),
                    receptive_field=window[0] if window else None,
                    stride=window[1] if window else None,
                    sees="window" if window else "unknown" if field is None else "whole",
                    parameters=sum(new),
                    multiply_adds=sum(self._multiply_adds[n] for n in upstream),
                )
            )
        return rows

    def largest_activation(self, layers: Iterable[Layer]) -> int:
        """Bytes per image of the largest float32 tensor on the way to the layers."""
        nodes = set().union(*(ancestors(self.nodes[layer.node.removesuffix(SOFTMAX)]) for layer in layers))
        return max(4 * _product(self.geometry[n].shape) for n in nodes if self.geometry[n].is_layer)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _containers(by_node: dict[str, Layer]) -> dict[str, Layer]:
    """The containers of a chain of modules as layers: `features` is the last module inside it."""
    found: dict[str, Layer] = {}
    for name, layer in by_node.items():
        parts = name.split(".")
        for length in range(1, len(parts)):
            prefix = ".".join(parts[:length])
            found[prefix] = Layer(prefix, layer.node, layer.relu)
    return found
