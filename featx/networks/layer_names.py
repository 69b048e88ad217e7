"""Names of layers: the literature's, those that every network has, and those of modules and nodes.

As in Caffe, DeCAF (Donahue et al. 2014) and Zeiler & Fergus (2014), `conv5` and `fc7` are the values *after*
their ReLU; `conv5:pre` and `fc7:pre` are before it (and after BatchNorm where there is one). `fc8` are the
logits. In every network `penultimate` is the input of the final layer, `logits` its output, `prob` their softmax.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from featx.errors import UnknownLayer
from featx.runtime.text import nearest_names

PRE = ":pre"
PROB, LOGITS, PENULTIMATE = "prob", "logits", "penultimate"
SOFTMAX = ":softmax"  # suffix of the one node featx adds: the softmax of the network's output


@dataclass(frozen=True)
class Layer:
    """One layer: its name, the graph node that computes it, and where it stands to a ReLU."""

    name: str
    node: str
    relu: str  # "after", "before" or "none"


def node_layers(nodes: Iterable[str], relu_nodes: frozenset[str], before_relu: frozenset[str]) -> list[Layer]:
    """Every node of a graph as a layer under its own name."""
    return [Layer(n, n, "after" if n in relu_nodes else "before" if n in before_relu else "none") for n in nodes]


@dataclass(frozen=True)
class LayerNames:
    """All names a network answers to.

    Attributes:
        backbone: the network's name, for messages.
        main: what `all`, ranges and the printed table go through, in order of computation.
        others: every further name that may be asked for: `:pre`, `prob`, graph nodes, modules.
    """

    backbone: str
    main: tuple[Layer, ...]
    others: Mapping[str, Layer]

    def resolve(self, spec: str) -> list[Layer]:
        """The layers a specification names, each once, in the order given.

        Raises:
            UnknownLayer: an entry matches nothing; the nearest names are listed.
        """
        found: dict[str, Layer] = {}
        for entry in (part.strip() for part in spec.split(",")):
            for layer in self._resolve_entry(entry):
                found.setdefault(layer.name, layer)
        return list(found.values())

    def _resolve_entry(self, entry: str) -> list[Layer]:
        by_name = {layer.name: layer for layer in self.main}
        if entry == "all":
            return list(self.main)
        if entry in by_name:
            return [by_name[entry]]
        if entry in self.others:
            return [self.others[entry]]
        if any(c in entry for c in "*?["):
            matches = [layer for layer in self.main if fnmatchcase(layer.name, entry)]
            if matches:
                return matches
        if "-" in entry:
            first, _, last = entry.partition("-")
            return self._range(first.strip(), last.strip())
        raise UnknownLayer(self._unknown(entry))

    def _range(self, first: str, last: str) -> list[Layer]:
        layers = self.main
        if not {first, last} <= {layer.name for layer in layers}:
            layers = self._modules_beside(first)
        order = [layer.name for layer in layers]
        for end in (first, last):
            if end not in order:
                raise UnknownLayer(self._unknown(end))
        start, stop = order.index(first), order.index(last)
        if start > stop:
            raise UnknownLayer(f"{first}-{last} runs backwards in {self.backbone}; write {last}-{first}")
        span = layers[start : stop + 1]
        kind = _kind(first)
        return [layer for layer in span if kind != _kind(last) or _kind(layer.name) == kind]

    def _modules_beside(self, name: str) -> tuple[Layer, ...]:
        """What is computed in the same module as `name`, in order: layer1 to layer4 of a ResNet."""
        parent = name.rpartition(".")[0]
        place = {layer.node: index for index, layer in enumerate(self.main)}
        beside = [
            layer
            for layer in {**self.others, **{one.name: one for one in self.main}}.values()
            if layer.name.rpartition(".")[0] == parent and layer.node in place
        ]
        return tuple(sorted(beside, key=lambda layer: place[layer.node]))

    def _unknown(self, name: str) -> str:
        known = dict.fromkeys([*(layer.name for layer in self.main), *self.others])
        nearest = nearest_names(name, list(known))
        return f"{self.backbone} has no layer {name!r}. Nearest: {nearest}. All of them: featx layers {self.backbone}"


def _kind(name: str) -> str:
    """conv of conv5_3; for names that do not end in a number, the name itself."""
    match = re.fullmatch(r"([a-z]+)\d+(_\d+)?", name)
    return match[1] if match else name
