"""Layer names of networks that are convolutions in `features` and linear layers in `classifier`.

As in Caffe, DeCAF (Donahue et al. 2014) and Zeiler & Fergus (2014), `conv5` and `fc7` are the values *after* their
ReLU; `conv5:pre` and `fc7:pre` are before it, and after BatchNorm where there is one. `fc8` are the logits.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from featx.networks.architectures.architecture import NamedLayer

_LAST_CONVOLUTION = 5  # the first linear layer is fc6, however many convolutions there are


class FeaturesAndClassifier(Protocol):
    """AlexNet, VGG and networks made like them."""

    features: Any
    classifier: Any


class Chained(nn.Module):
    """(B, 3, H, W) -> (B, K) logits: `features`, flattened, then `classifier`.

    Attributes:
        named: its layers as the literature names them.
    """

    def __init__(
        self, features: nn.Sequential, avgpool: nn.Module | None, classifier: nn.Sequential, named: list[NamedLayer]
    ) -> None:
        super().__init__()
        self.features, self.classifier, self.named = features, classifier, named
        if avgpool is not None:
            self.avgpool = avgpool

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        if hasattr(self, "avgpool"):
            maps = self.avgpool(maps)
        logits: Tensor = self.classifier(maps.flatten(1))
        return logits


def name_layers(network: FeaturesAndClassifier, *, by_block: bool) -> list[NamedLayer]:
    """The layers in order.

    Args:
        by_block: convolutions are called conv1_1, conv1_2, ... block by block, as in VGG; else conv1, conv2, ....
    """
    return [*_maps(network.features, by_block), *_vectors(network.classifier)]


def chain(network: Any) -> list[tuple[str, nn.Module]]:
    """Its modules one behind the other, (name, module)."""
    between = [("avgpool", network.avgpool)] if hasattr(network, "avgpool") else []
    return [
        *((f"features.{i}", module) for i, module in network.features.named_children()),
        *between,
        ("flatten", nn.Flatten()),
        *((f"classifier.{i}", module) for i, module in network.classifier.named_children()),
    ]


def _maps(features: nn.Sequential, by_block: bool) -> list[NamedLayer]:
    found: list[NamedLayer] = []
    pools: list[tuple[int, NamedLayer]] = []  # and norms: how many convolutions come before each
    block, within, before = 1, 0, ""
    for index, module in features.named_children():
        node = f"features.{index}"
        if isinstance(module, nn.Conv2d):
            within += 1
            found.append(NamedLayer(f"conv{block}_{within}" if by_block else f"conv{within}", node))
        last = found[-1]
        is_relu = isinstance(module, nn.ReLU)
        found[-1] = NamedLayer(
            last.name,
            node if is_relu else last.node,
            before if is_relu else last.before_relu,
            (*last.modules, node),
        )
        if isinstance(module, nn.LocalResponseNorm):
            pools.append((len(found), NamedLayer(f"norm{block if by_block else within}", node)))
        if isinstance(module, nn.MaxPool2d):
            pools.append((len(found), NamedLayer(f"pool{block if by_block else within}", node)))
            if by_block:
                block, within = block + 1, 0
        before = node
    for place, pool in reversed(pools):
        found.insert(place, pool)
    return found


def _vectors(classifier: nn.Sequential) -> list[NamedLayer]:
    found: list[NamedLayer] = []
    waiting: list[str] = []  # dropout belongs to the layer behind it
    for index, module in classifier.named_children():
        node = f"classifier.{index}"
        if isinstance(module, nn.Dropout):
            waiting.append(node)
            continue
        if isinstance(module, nn.Linear):
            found.append(NamedLayer(f"fc{_LAST_CONVOLUTION + len(found) + 1}", node))
        last = found[-1]
        found[-1] = NamedLayer(
            last.name,
            node,
            last.node if isinstance(module, nn.ReLU) else last.before_relu,
            (*last.modules, *waiting, node),
        )
        waiting = []
    return found
