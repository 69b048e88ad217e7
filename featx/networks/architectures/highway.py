"""Highway networks on digits: layers that begin by handing on what they are given.

Source:
    Srivastava, Greff & Schmidhuber, Highway networks, 2015, section 3: y = H(x) T(x) + x (1 - T(x)). A plain layer of
    50 units, 9, 19, 49 or 99 highway layers, and the softmax.
"""

from __future__ import annotations

import functools
from collections import OrderedDict

import torch
from torch import Tensor, nn

from featx.networks.architectures.architecture import Architecture, NamedLayer, Unpublished
from featx.networks.architectures.lenet import DIGITS, Grey

SIDE, WIDTH = 28, 50
# layers -> the bias of the gates at the start: the deeper, the more they hand on.
DEPTHS = {10: -1.0, 20: -2.0, 50: -3.0, 100: -4.0}


class Highway(nn.Module):
    """(B, D) -> (B, D): H(x) T(x) + x (1 - T(x)), H a ReLU layer, T a sigmoid one."""

    def __init__(self, width: int, gate_bias: float) -> None:
        """Args:

        gate_bias: of T at the start; negative: it hands on.
        """
        super().__init__()
        self.transform, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.kaiming_normal_(self.transform.weight, nonlinearity="relu")
        nn.init.constant_(self.gate.bias, gate_bias)

    def forward(self, values: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(values))
        return torch.relu(self.transform(values)) * gate + values * (1 - gate)


class HighwayNetwork(nn.Module):
    """(B, 3, 28, 28) -> (B, 10)."""

    def __init__(self, depth: int) -> None:
        """Args:

        depth: hidden layers, the first of which is a plain one.
        """
        super().__init__()
        self.grey, self.flatten = Grey(), nn.Flatten()
        self.first, self.relu = nn.Linear(SIDE * SIDE, WIDTH), nn.ReLU(inplace=True)
        layers = ((f"highway{number}", Highway(WIDTH, DEPTHS[depth])) for number in range(2, depth + 1))
        self.layers = nn.Sequential(OrderedDict(layers))
        self.fc = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layers(self.relu(self.first(self.flatten(self.grey(images))))))
        return logits


def layers(network: HighwayNetwork) -> list[NamedLayer]:
    """plain1, highway2, ..., fc."""
    own = [f"layers.{name}" for name, _ in network.layers.named_children()]
    return [
        NamedLayer("plain1", "relu", "first", ("first", "relu")),
        *(NamedLayer(one.partition(".")[2], f"{one}.add", None, (f"{one}.transform", f"{one}.gate")) for one in own),
        NamedLayer("fc", "fc", None, ("fc",)),
    ]


def _build(depth: int, _published: str | None, _init: bool) -> nn.Module:
    return HighwayNetwork(depth)


ENTRIES = tuple(
    Architecture(
        f"highway-{depth}", functools.partial(_build, depth),
        Unpublished(f"highway-{depth}", {**DIGITS, "resize": SIDE, "crop": SIDE}), HighwayNetwork, layers,
    )
    for depth in DEPTHS
)  # fmt: skip
