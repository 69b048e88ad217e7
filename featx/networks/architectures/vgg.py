"""VGG, with and without BatchNorm: conv1_1, conv1_2, pool1, ..., conv5_3, pool5, fc6, fc7, fc8.

The networks of torchvision, with their weights and the names of their modules; see `alexnet` for why they are defined
here.

Source:
    Simonyan & Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, Table 1.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from featx.networks.architectures.architecture import IMAGENET, Architecture, ListedWeights, NamedLayer, Unpublished
from featx.networks.architectures.sequential import chain, name_layers

_THIRD, _COLOURS = 2, 3
WIDTHS = (64, 128, 256, 512, 512)
# Convolutions per block.
CONFIGURATIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2,) * 5, "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
# Trained with pixels of 0..255 less a mean, as in the paper.
_AS_IN_THE_PAPER = {**IMAGENET, "mean": [0.48235, 0.45882, 0.40784], "std": [1 / 255, 1 / 255, 1 / 255]}
_FILES = {
    "vgg11": "vgg11-8a719046.pth", "vgg11_bn": "vgg11_bn-6002323d.pth",
    "vgg13": "vgg13-19584684.pth", "vgg13_bn": "vgg13_bn-abd245e5.pth",
    "vgg16": "vgg16-397923af.pth", "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg19": "vgg19-dcbb9e9d.pth", "vgg19_bn": "vgg19_bn-c79401a0.pth",
}  # fmt: skip
WEIGHTS = {name: {"IMAGENET1K_V1": (file, IMAGENET)} for name, file in _FILES.items()}
WEIGHTS["vgg16"]["IMAGENET1K_FEATURES"] = ("vgg16_features-amdegroot-88682ab5.pth", _AS_IN_THE_PAPER)


class VGG(nn.Module):
    """(B, 3, H, W), H and W at least 32 -> (B, K) logits."""

    def __init__(
        self,
        convolutions: tuple[int, ...],
        *,
        batch_norm: bool,
        init: bool,
        lrn: bool = False,
        ones: bool = False,
        classes: int = 1000,
        dropout: float = 0.5,
    ) -> None:
        """Args:

        convolutions: in each of the five blocks.
        lrn: local response normalisation behind the first convolution, as in configuration A-LRN.
        ones: the third convolution of a block is 1 x 1, as in configuration C.
        init: initialise as torchvision does (He et al., ICCV 2015, for the convolutions).
        """
        super().__init__()
        modules, before = list[nn.Module](), 3
        for count, width in zip(convolutions, WIDTHS, strict=True):
            for number in range(count):
                side = 1 if ones and number == _THIRD else 3
                modules.append(nn.Conv2d(before, width, side, padding=side // 2))
                modules += [nn.BatchNorm2d(width)] if batch_norm else []
                modules.append(nn.ReLU(inplace=True))
                if lrn and before == _COLOURS:
                    modules.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))  # Krizhevsky's
                before = width
            modules.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*modules)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(4096, classes),
        )  # fmt: skip
        if init:
            self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def layers(network: VGG) -> list[NamedLayer]:
    return name_layers(network, by_block=True)


def build(name: str, _published: str | None, init: bool) -> nn.Module:
    return VGG(CONFIGURATIONS[name.removesuffix("_bn")], batch_norm=name.endswith("_bn"), init=init)


def build_as_printed(name: str, _published: str | None, init: bool) -> nn.Module:
    """Configurations A-LRN and C of Table 1."""
    if name == "vgg11-lrn":
        return VGG(CONFIGURATIONS["vgg11"], batch_norm=False, init=init, lrn=True)
    return VGG(CONFIGURATIONS["vgg16"], batch_norm=False, init=init, ones=True)


_AS_PRINTED = tuple(
    Architecture(
        name, functools.partial(build_as_printed, name), Unpublished(name, _AS_IN_THE_PAPER), VGG, layers, chain
    )
    for name in ("vgg11-lrn", "vgg16-c")
)
ENTRIES = (
    tuple(
        Architecture(
            name,
            functools.partial(build, name),
            ListedWeights(name, f"{name.upper()}_Weights", WEIGHTS[name]),
            VGG,
            layers,
            chain,
        )
        for name in _FILES
    )
    + _AS_PRINTED
)
