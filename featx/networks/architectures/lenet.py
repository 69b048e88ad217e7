"""Networks for handwritten digits: LeNet-5 as printed, and a small convolutional network of the lectures.

They take grey images: the three colours of what featx gives them are weighed as in television (ITU-R BT.601), which
leaves a grey image as it is.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featx.networks.architectures.architecture import Architecture, NamedLayer, Unpublished
from featx.networks.architectures.sequential import Chained, chain

VECTOR = 64  # values: a multiple of what PyTorch takes at once
# White is 1.175 and black -0.1, as in LeCun et al.: the mean over their images is about 0, the variance about 1.
_LOW, _RANGE = 0.1, 1.275
DIGITS = {
    "resize": 32, "crop": 32, "interpolation": "bilinear", "mean": [_LOW / _RANGE] * 3, "std": [1 / _RANGE] * 3
}  # fmt: skip
# LeCun et al. 1998, Table I: which of the 6 maps of S2 each of the 16 maps of C3 takes.
TABLE_I = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5), (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5),
    (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5), (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip


class Grey(nn.Module):
    """(B, 3, H, W) -> (B, 1, H, W): 0.299 R + 0.587 G + 0.114 B."""

    pointwise = True

    def forward(self, images: Tensor) -> Tensor:
        return (0.299 * images[:, :1] + 0.587 * images[:, 1:2]) + 0.114 * images[:, 2:]


class ScaledTanh(nn.Module):
    """A tanh(S a), A = 1.7159, S = 2/3, so that f(1) = 1 and f(-1) = -1 (LeCun et al. 1998, appendix A)."""

    pointwise = True

    def forward(self, values: Tensor) -> Tensor:
        # PyTorch rounds the last values of a tensor, which fill no vector, in another way: an image's would depend
        # on how many images there are. So each image fills whole vectors.
        flat = values.flatten(1)
        whole = F.pad(flat * (2 / 3), (0, -flat.shape[1] % VECTOR))
        return 1.7159 * torch.tanh(whole)[:, : flat.shape[1]].reshape(values.shape)


class Subsampling(nn.Module):
    """(B, C, H, W) -> (B, C, H / 2, W / 2): the sum of 2 x 2 values times a coefficient, plus a bias, of each map."""

    window = (2, 2, 0)  # kernel, stride, padding

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        nn.init.constant_(self.weight, 0.25)
        nn.init.zeros_(self.bias)

    def forward(self, maps: Tensor) -> Tensor:
        return 4 * F.avg_pool2d(maps, 2) * self.weight[:, None, None] + self.bias[:, None, None]


class TableConv2d(nn.Module):
    """A convolution whose maps take only some of the maps before them; only their weights exist.

    Attributes:
        weight: (connections, k, k), in the order of the table.
    """

    def __init__(self, inputs: int, table: tuple[tuple[int, ...], ...], kernel: int) -> None:
        """Args:

        table: for every output map the input maps it takes.
        """
        super().__init__()
        self.window = (kernel, 1, 0)
        self.inputs, self.outputs = inputs, len(table)
        self.places = [output * inputs + one for output, some in enumerate(table) for one in some]
        self.weight = nn.Parameter(torch.empty(len(self.places), kernel, kernel))
        self.bias = nn.Parameter(torch.empty(len(table)))
        _initialise(self.weight, self.bias, inputs=kernel * kernel * len(self.places) / len(table))

    def forward(self, maps: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        places = torch.tensor(self.places, device=self.weight.device)
        every = self.weight.new_zeros(self.outputs * self.inputs, kernel, kernel).index_copy(0, places, self.weight)
        return F.conv2d(maps, every.view(self.outputs, self.inputs, kernel, kernel), self.bias)


class Rbf(nn.Module):
    """(B, D) -> (B, K): minus the squared distance to a fixed code of each class, so that the nearest is greatest.

    Source:
        LeCun et al. 1998, section II.B: the outputs are Euclidean radial basis functions. Their codes are drawings of
        the characters; here they are random, +1 or -1, which they call a distributed code of the same kind.
    """

    codes: Tensor

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, classes
        generator = torch.Generator().manual_seed(1998)
        drawn = torch.randint(0, 2, (classes, inputs), generator=generator).float() * 2 - 1
        self.register_buffer("codes", drawn)

    def forward(self, values: Tensor) -> Tensor:
        return -(values[:, None] - self.codes).square().sum(2)


def _initialise(weight: Tensor, bias: Tensor | None, inputs: float) -> None:
    """Uniform between -2.4 / F and 2.4 / F, F the number of inputs of a unit (LeCun et al. 1998, appendix A)."""
    nn.init.uniform_(weight, -2.4 / inputs, 2.4 / inputs)
    if bias is not None:
        nn.init.zeros_(bias)


def lenet5(*, rbf: bool, classes: int = 10) -> Chained:
    """LeNet-5: (B, 3, 32, 32) -> (B, K). With RBF outputs it has 60,000 trainable parameters, as the paper counts.

    Source:
        LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition, 1998, section II.B.
    """
    c1, c5 = nn.Conv2d(1, 6, 5), nn.Conv2d(16, 120, 5)
    f6 = nn.Linear(120, 84)
    for module in (c1, c5, f6):
        _initialise(module.weight, module.bias, inputs=math.prod(module.weight.shape[1:]))
    features: OrderedDict[str, nn.Module] = OrderedDict(
        grey=Grey(), C1=c1, C1_tanh=ScaledTanh(), S2=Subsampling(6), S2_tanh=ScaledTanh(),
        C3=TableConv2d(6, TABLE_I, 5), C3_tanh=ScaledTanh(), S4=Subsampling(16), S4_tanh=ScaledTanh(), C5=c5,
        C5_tanh=ScaledTanh(),
    )  # fmt: skip
    last: nn.Module = Rbf(84, classes) if rbf else nn.Linear(84, classes)
    classifier = OrderedDict(F6=f6, F6_tanh=ScaledTanh(), output=last)
    named = [
        NamedLayer(name, f"{part}.{name}_tanh", None, (f"{part}.{name}", f"{part}.{name}_tanh"))
        for part, names in (("features", ("C1", "S2", "C3", "S4", "C5")), ("classifier", ("F6",)))
        for name in names
    ]
    named.append(NamedLayer("output", "classifier.output", None, ("classifier.output",)))
    return Chained(nn.Sequential(features), None, nn.Sequential(classifier), named)


def convnet_mnist() -> Chained:
    """(B, 3, 28, 28) -> (B, 10): a convolution with 20 maps, pooling, 100 hidden units; 289,630 weights."""
    features = nn.Sequential(Grey(), nn.Conv2d(1, 20, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    classifier = nn.Sequential(nn.Linear(20 * 12 * 12, 100), nn.ReLU(inplace=True), nn.Linear(100, 10))
    named = [
        NamedLayer("conv1", "features.2", "features.1", ("features.1", "features.2", "features.3")),
        NamedLayer("pool1", "features.3"),
        NamedLayer("fc2", "classifier.1", "classifier.0", ("classifier.0", "classifier.1")),
        NamedLayer("fc3", "classifier.2", None, ("classifier.2",)),
    ]
    return Chained(features, None, classifier, named)


def _entry(name: str, build: functools.partial[Chained], values: dict[str, object]) -> Architecture:
    return Architecture(
        name, lambda _published, _init: build(), Unpublished(name, values), Chained, lambda one: one.named, chain
    )


ENTRIES = (
    _entry("convnet-mnist", functools.partial(convnet_mnist), {**DIGITS, "resize": 28, "crop": 28}),
    _entry("lenet5", functools.partial(lenet5, rbf=False), DIGITS),
    _entry("lenet5-rbf", functools.partial(lenet5, rbf=True), DIGITS),
)
