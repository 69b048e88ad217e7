"""What the images are to be told apart by, and the objectives this makes for values of C and folds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.heads.solver.objectives import CrossEntropy, Objective, SquaredHinge


@dataclass(frozen=True)
class Targets:
    """Classes of n images and how much each image counts.

    Attributes:
        kind: "svm" or "softmax".
        labels: (n,) 0..K-1, or for several classes per image a membership (n, K) of bool ("svm" only).
        classes: K >= 2.
        weights: (n,) factors on C, or None.
        class_weights: (K,) factors on C, or None. As in scikit-learn they count for all images of the class in a
            softmax and in a two-class SVM, and in a one-vs-rest SVM for the images of the one class only.
    """

    kind: str
    labels: npt.NDArray[np.integer] | npt.NDArray[np.bool_]
    classes: int
    weights: npt.NDArray[np.float64] | None = None
    class_weights: npt.NDArray[np.float64] | None = None

    @property
    def binary(self) -> bool:
        """Two classes: one weight vector decides."""
        return self.classes == 2 and self.labels.ndim == 1

    @property
    def groups(self) -> int:
        """Problems per fold that can be solved apart: the classes of an SVM, one for a softmax."""
        return 1 if self.kind == "softmax" or self.binary else self.classes

    @property
    def group(self) -> int:
        """Problem rows that belong together."""
        return self.classes if self.kind == "softmax" else 1

    def objective(
        self, c: float, trained: npt.NDArray[np.bool_], groups: Tensor, dtype: torch.dtype, device: torch.device
    ) -> Objective:
        """The objective of some problems; problem g is class g % groups of fold g // groups.

        Args:
            trained: (F, n), which images each fold trains on.
        """
        folds = groups.cpu().numpy() // self.groups
        if self.kind == "softmax":
            # With two classes scikit-learn has one weight vector w and 1/2 |w|^2; as two rows -w/2 and w/2 that is
            # twice the penalty here, and half of C makes up for it.
            costs = (c / 2 if self.binary else c) * self._row_weights()[None] * trained[folds]
            labels = torch.from_numpy(self.labels.astype(np.int64)).to(device)
            return CrossEntropy(labels, torch.from_numpy(costs).to(device, dtype), self.classes)
        classes = np.ones_like(folds) if self.binary else groups.cpu().numpy() % self.groups
        positive = (
            self.labels[:, classes].T.astype(bool) if self.labels.ndim == 2 else self.labels == classes[:, None]
        )
        costs = np.where(trained[folds], c, 0.0)
        if self.weights is not None:
            costs *= self.weights
        if self.class_weights is not None:
            rest = self.class_weights[0] if self.binary else 1.0
            costs *= np.where(positive, self.class_weights[classes][:, None], rest)
        signs = torch.from_numpy(positive).to(device, dtype).mul_(2).sub_(1)
        return SquaredHinge(signs, torch.from_numpy(costs).to(device, dtype))

    def _row_weights(self) -> npt.NDArray[np.float64]:
        weights = np.ones(len(self.labels)) if self.weights is None else self.weights
        return weights if self.class_weights is None else weights * self.class_weights[self.labels.astype(np.intp)]

    def family_costs(
        self, c: float, trained: npt.NDArray[np.bool_], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """(F, n): the largest cost any problem of a fold gives an image."""
        largest = np.full(len(self.labels), c)
        if self.weights is not None:
            largest = largest * self.weights
        if self.class_weights is not None:
            largest = largest * max(float(self.class_weights.max()), 0.0 if self.binary else 1.0)
        return torch.from_numpy(trained * largest).to(device, dtype)
