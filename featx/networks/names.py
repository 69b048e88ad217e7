"""Layer names as the literature writes them, and what they mean in a torchvision network.

As in Caffe, DeCAF (Donahue et al. 2014) and Zeiler & Fergus (2014), `conv5` and `fc7` are the values *after*
their ReLU; `conv5:pre` and `fc7:pre` are before it (and after BatchNorm where there is one). `fc8` are the
logits and `prob` their softmax.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torchvision.models import VGG, AlexNet

from featx.errors import UnknownLayer
from featx.networks.mini import Mini
from featx.networks.tap import SOFTMAX

PRE = ":pre"
PROB = "prob"


@dataclass(frozen=True)
class Layer:
    """One layer: its name, the graph node that computes it, and where it stands to a ReLU."""

    name: str
    node: str
    relu: str  # "after", "before" or "none"


def literature_layers(network: nn.Module) -> list[Layer]:
    """The layers of an AlexNet or VGG under their literature names, in order; empty for other networks.

    AlexNet: conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool5, fc6, fc7, fc8.
    VGG16: conv1_1, conv1_2, pool1, conv2_1, ..., conv5_3, pool5, fc6, fc7, fc8.
    Every layer with a ReLU is followed by its `:pre`.
    """
    if not isinstance(network, AlexNet | VGG | Mini):
        return []
    by_block = network.by_block if isinstance(network, Mini) else isinstance(network, VGG)
    return [*_map_layers(network.features, by_block), *_vector_layers(network.classifier)]


def _map_layers(features: nn.Sequential, by_block: bool) -> Iterator[Layer]:
    block, within, before, name = 1, 0, "", ""
    for index, module in features.named_children():
        node = f"features.{index}"
        if isinstance(module, nn.Conv2d):
            within += 1
            name = f"conv{block}_{within}" if by_block else f"conv{within}"
        if isinstance(module, nn.ReLU):
            yield Layer(name, node, "after")
            yield Layer(name + PRE, before, "before")
        if isinstance(module, nn.MaxPool2d):
            yield Layer(f"pool{block if by_block else within}", node, "none")
            if by_block:
                block, within = block + 1, 0
        before = node


def _vector_layers(classifier: nn.Sequential) -> Iterator[Layer]:
    number, pending = 5, ""
    for index, module in classifier.named_children():
        node = f"classifier.{index}"
        if isinstance(module, nn.Linear):
            number, pending = number + 1, node
        if isinstance(module, nn.BatchNorm1d):
            pending = node
        if isinstance(module, nn.ReLU):
            yield Layer(f"fc{number}", node, "after")
            yield Layer(f"fc{number}{PRE}", pending, "before")
            pending = ""
    if pending:
        yield Layer(f"fc{number}", pending, "none")


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
        order = [layer.name for layer in self.main]
        for end in (first, last):
            if end not in order:
                raise UnknownLayer(self._unknown(end))
        start, stop = order.index(first), order.index(last)
        if start > stop:
            raise UnknownLayer(f"{first}-{last} runs backwards in {self.backbone}; write {last}-{first}")
        span = self.main[start : stop + 1]
        kind = _kind(first)
        return [layer for layer in span if kind != _kind(last) or _kind(layer.name) == kind]

    def _unknown(self, name: str) -> str:
        known = dict.fromkeys([*(layer.name for layer in self.main), *self.others])
        nearest = nearest_names(name, list(known))
        return f"{self.backbone} has no layer {name!r}. Nearest: {nearest}. All of them: featx layers {self.backbone}"


def _kind(name: str) -> str:
    """conv of conv5_3; for names that do not end in a number, the name itself."""
    match = re.fullmatch(r"([a-z]+)\d+(_\d+)?", name)
    return match[1] if match else name


def nearest_names(name: str, candidates: Sequence[str], count: int = 3) -> str:
    """The candidates most like a mistyped name, quoted, the best first."""
    near = difflib.get_close_matches(name, candidates, count, 0) if candidates else []
    return ", ".join(repr(n) for n in near)


def prob_layer(output: str) -> Layer:
    """`prob`: the softmax of the network's output node."""
    return Layer(PROB, output + SOFTMAX, "none")
