"""What a training brings its network to: one class per image, several, or numbers; its loss and its measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featx.heads.quality.metrics import LabelMetrics, Metrics, ValueMetrics, measure, measure_labels, measure_values
from featx.heads.selection.class_weights import class_weights_of
from featx.heads.selection.scoring import chosen_score, score_of
from featx.options.training import FinetuneConfig
from featx.training.data.mixing import mixed_cross_entropy


class Goal(ABC):
    """Of outputs (B, K) and targets, which are what `Task.labels` has of some images, as a tensor.

    Attributes:
        quality: the validation's number by which the best epoch is chosen; of equal ones the lower loss.
    """

    quality: str

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the images."""

    @abstractmethod
    def mixed_loss(self, outputs: Tensor, targets: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
        """As `loss`, where images have a share (B,) of their own target and the rest of a partner's."""

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """How many of the images are right; None where that is no question."""
        return None

    def weight_of(self, labels: npt.NDArray[Any]) -> float:
        """What images count for together in a mean."""
        return float(len(labels))

    @abstractmethod
    def validation(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Measures of all validation images: val_loss and others."""

    @abstractmethod
    def report(self, outputs: Tensor, targets: Tensor, names: list[str]) -> Metrics | LabelMetrics | ValueMetrics:
        """The same for the run's report."""


class OneClass(Goal):
    """The cross-entropy of one class per image."""

    def __init__(self, score: str, weights: npt.NDArray[np.float64] | None, smoothing: float, device: torch.device):
        """Args:

        score: of `heads.selection.scoring.SCORES`.
        weights: (K,) of the classes in the loss; None: the same.
        """
        self.quality = {"accuracy": "val_accuracy", "balanced": "val_balanced", "ap": "val_ap"}[score]
        self._score, self._smoothing = score, smoothing
        self._numbers = weights
        self._weights = None if weights is None else torch.from_numpy(weights).float().to(device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=self._weights, label_smoothing=self._smoothing)

    def mixed_loss(self, outputs: Tensor, targets: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
        return mixed_cross_entropy(outputs, targets, partners, shares, self._smoothing)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return (outputs.argmax(1) == targets).sum()

    def weight_of(self, labels: npt.NDArray[Any]) -> float:
        return float(len(labels)) if self._numbers is None else float(self._numbers[labels].sum())

    def validation(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        labels = targets.numpy()
        loss = F.cross_entropy(outputs, targets, reduction="sum").double()
        found = {
            "val_loss": float(loss) / len(labels),
            "val_accuracy": float((outputs.argmax(1) == targets).sum()) / len(labels),
        }
        if self._score != "accuracy":
            chances = outputs.double().softmax(1).numpy() if self._score == "ap" else outputs.numpy()
            found[self.quality] = score_of(self._score, chances, labels)
        return found

    def report(self, outputs: Tensor, targets: Tensor, names: list[str]) -> Metrics:
        return measure(outputs.double().numpy(), targets.numpy(), names)


class SeveralClasses(Goal):
    """The binary cross-entropy of every class, mean over the classes; an image is as right as its classes are."""

    quality = "val_ap"

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        smooth = targets * (1 - self._smoothing) + 0.5 * self._smoothing
        return F.binary_cross_entropy_with_logits(outputs, smooth)

    def mixed_loss(self, outputs: Tensor, targets: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
        return self.loss(outputs, torch.lerp(partners, targets, shares[:, None]))

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return ((outputs > 0) == (targets > 0.5)).double().mean(1).sum()

    def validation(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        found = measure_labels(outputs.numpy(), targets.numpy() > 0.5, list(map(str, range(targets.shape[1]))))
        right = self.right(outputs, targets)
        assert right is not None
        return {
            "val_loss": float(F.binary_cross_entropy_with_logits(outputs.double(), targets.double())),
            "val_accuracy": float(right) / len(targets),
            "val_ap": found.mean_average_precision,
        }

    def report(self, outputs: Tensor, targets: Tensor, names: list[str]) -> LabelMetrics:
        return measure_labels(outputs.double().numpy(), targets.numpy() > 0.5, names)


class Numbers(Goal):
    """The squared error of numbers, in units of their standard deviation over the training images.

    While it is trained, the network gives (value - mean) / deviation; `in_units` makes its final layer give values.
    """

    quality = "val_r2"

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        """Args:

        values: (n, K) to train on.
        """
        self.mean = values.mean(axis=0, dtype=np.float64)
        deviation = values.std(axis=0, dtype=np.float64)
        self.deviation = np.where(deviation > 0, deviation, 1.0)

    def _scaled(self, targets: Tensor) -> Tensor:
        mean, deviation = (torch.from_numpy(one).to(targets) for one in (self.mean, self.deviation))
        return (targets - mean) / deviation

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, self._scaled(targets))

    def mixed_loss(self, outputs: Tensor, targets: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
        return self.loss(outputs, torch.lerp(partners, targets, shares[:, None]))

    def validation(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        found = self.report(outputs, targets, list(map(str, range(targets.shape[1]))))
        loss = float(F.mse_loss(outputs.double(), self._scaled(targets.double())))
        return {"val_loss": loss, "val_r2": found.mean_r2}

    def report(self, outputs: Tensor, targets: Tensor, names: list[str]) -> ValueMetrics:
        return measure_values(outputs.double().numpy() * self.deviation + self.mean, targets.double().numpy(), names)

    def in_units(self, state: dict[str, Tensor], layers: list[str]) -> None:
        """Change the weights and biases of final layers, in place, such that they give values."""
        for layer in layers:
            weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
            deviation = torch.from_numpy(self.deviation)
            scaled = weight.double() * deviation.view(-1, *[1] * (weight.ndim - 1))
            state[f"{layer}.weight"] = scaled.to(weight.dtype)
            state[f"{layer}.bias"] = (bias.double() * deviation + torch.from_numpy(self.mean)).to(bias.dtype)

    def from_units(self, network: nn.Module, layers: list[str]) -> None:
        """The reverse, in the network itself, whose final layers give values."""
        deviation = torch.from_numpy(self.deviation)
        with torch.no_grad():
            for layer in layers:
                weight, bias = (network.get_parameter(f"{layer}.{name}") for name in ("weight", "bias"))
                weight.copy_(weight.double() / deviation.view(-1, *[1] * (weight.ndim - 1)))
                bias.copy_((bias.double() - torch.from_numpy(self.mean)) / deviation)


def goal_for(
    kind: str, labels: npt.NDArray[Any], names: list[str], config: FinetuneConfig, device: torch.device
) -> Goal:
    """What a training's options ask for.

    Args:
        kind: see `featx.networks.run_folder.Run`.
        labels: of the images to train on.
        names: of the classes or numbers.

    Raises:
        UsageError: weights of classes that are not these.
    """
    if kind == "values":
        return Numbers(labels)
    if kind == "labels":
        return SeveralClasses(config.label_smoothing)
    given = None if config.class_weights == "none" else config.class_weights
    weights = class_weights_of(given, labels, names)
    return OneClass(chosen_score(config.score, weights is not None), weights, config.label_smoothing, device)
