"""AlexNet: conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool5, fc6, fc7, fc8.

The network of torchvision, with its weights and the names of its modules; defined here because importing torchvision
loads the compiler of PyTorch, which takes longer than loading the network.

Source:
    Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997, 2014.
"""

from __future__ import annotations

from torch import Tensor, nn

from featx.networks.architectures.architecture import IMAGENET, Architecture, ListedWeights, NamedLayer
from featx.networks.architectures.sequential import chain, name_layers

WEIGHTS = {"IMAGENET1K_V1": ("alexnet-owt-7be5be79.pth", IMAGENET)}


class AlexNet(nn.Module):
    """(B, 3, H, W), H and W at least 63 -> (B, K) logits."""

    def __init__(self, classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True),
            nn.Dropout(dropout), nn.Linear(4096, 4096), nn.ReLU(inplace=True),
            nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def layers(network: AlexNet) -> list[NamedLayer]:
    return name_layers(network, by_block=False)


def build(_published: str | None, _init: bool) -> nn.Module:
    return AlexNet()


ENTRIES = (
    Architecture("alexnet", build, ListedWeights("alexnet", "AlexNet_Weights", WEIGHTS), AlexNet, layers, chain),
)
