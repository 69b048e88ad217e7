"""DeepFace: three layers whose weights are not shared between positions, for aligned faces.

Source:
    Taigman, Yang, Ranzato & Wolf, DeepFace: closing the gap to human-level performance in face verification, CVPR
    2014, Figure 2.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featx.networks.architectures.architecture import IMAGENET, Architecture, NamedLayer, Unpublished
from featx.networks.architectures.sequential import Chained, chain

SIDE, PEOPLE = 152, 4030


class LocallyConnected2d(nn.Module):
    """(B, C, H, W) -> (B, K, H', W'): a convolution with weights of its own at every position.

    Attributes:
        weight: (H' W', K, C k k).
        bias: (K, H', W').
    """

    def __init__(self, inputs: int, outputs: int, side: int, kernel: int, stride: int = 1) -> None:
        """Args:

        side: height and width of its input.
        """
        super().__init__()
        self.window = (kernel, stride, 0)
        self.side = (side - kernel) // stride + 1
        self.weight = nn.Parameter(torch.empty(self.side**2, outputs, inputs * kernel**2))
        self.bias = nn.Parameter(torch.empty(outputs, self.side, self.side))
        nn.init.normal_(self.weight, 0, (2 / (inputs * kernel**2)) ** 0.5)
        nn.init.zeros_(self.bias)

    def forward(self, maps: Tensor) -> Tensor:
        kernel, stride, _ = self.window
        columns = F.unfold(maps, kernel, stride=stride).transpose(1, 2)  # (B, H' W', C k k)
        if self.training:
            found = torch.einsum("bpc,pkc->bkp", columns, self.weight)
        else:  # image by image: the sums of one do not depend on how many there are
            found = torch.stack([torch.bmm(self.weight, one[..., None])[..., 0].t() for one in columns])
        maps = found.reshape(len(found), -1, self.side, self.side)
        return maps + self.bias


def deepface() -> Chained:
    """(B, 3, 152, 152) -> (B, 4030); 118,923,774 parameters."""
    features: OrderedDict[str, nn.Module] = OrderedDict(
        C1=nn.Conv2d(3, 32, 11), C1_relu=nn.ReLU(inplace=True), M2=nn.MaxPool2d(3, 2, padding=1),
        C3=nn.Conv2d(32, 16, 9), C3_relu=nn.ReLU(inplace=True),
        L4=LocallyConnected2d(16, 16, 63, 9), L4_relu=nn.ReLU(inplace=True),
        L5=LocallyConnected2d(16, 16, 55, 7, stride=2), L5_relu=nn.ReLU(inplace=True),
        L6=LocallyConnected2d(16, 16, 25, 5), L6_relu=nn.ReLU(inplace=True),
    )  # fmt: skip
    classifier: OrderedDict[str, nn.Module] = OrderedDict(
        F7=nn.Linear(21 * 21 * 16, 4096), F7_relu=nn.ReLU(inplace=True), F7_dropout=nn.Dropout(0.5),
        F8=nn.Linear(4096, PEOPLE),
    )  # fmt: skip
    named = []
    for part, modules in (("features", features), ("classifier", classifier)):
        for name in (name for name in modules if "_" not in name):
            own = tuple(f"{part}.{one}" for one in modules if one == name or one.startswith(f"{name}_"))
            if name == "M2":
                named.append(NamedLayer(name, own[0]))
            elif len(own) == 1:
                named.append(NamedLayer(name, own[0], None, own))
            else:
                named.append(NamedLayer(name, own[1], own[0], own))
    return Chained(nn.Sequential(features), None, nn.Sequential(classifier), named)


_VALUES = {**IMAGENET, "resize": SIDE, "crop": SIDE, "mean": [0.0] * 3, "std": [1.0] * 3}  # pixels from 0 to 1
ENTRIES = (
    Architecture(
        "deepface", lambda _published, _init: deepface(), Unpublished("deepface", _VALUES), Chained,
        lambda network: network.named, chain,
    ),
)  # fmt: skip
