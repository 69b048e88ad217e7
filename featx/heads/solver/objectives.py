"""What is minimised: the losses of scikit-learn's LinearSVC and LogisticRegression, for many problems at once.

Every column of the literature (a class of one-vs-rest, a class of a softmax, of one fold, for one C) is a ROW of the
matrices here: scores are (P, n), P problem rows by n images. Products with rows are several times as fast as
products with a few columns. Sums over images are taken in float64 whatever the matrices are.

Both objectives answer the same questions, for scores (P, n) whose rows belong together `group` by `group`, G groups:
- value (G,) float64; residual (P, n), the derivative by the scores; curvature (P, n), what `curvature_product` needs
  to know of the scores to give the second derivative times a change of them;
- mean_curvature and largest_curvature, one number for one image's second derivative, averaged and at most;
- extra_curvature (G, group, group) float64, the second derivative by a coordinate that adds `extra_column` (n,) to
  the scores;
- select, the objective of some groups; of_images, of some images.

To each loss belongs the penalty 1/2 |w|^2, which a `Space` knows; the sum of both is the objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class SquaredHinge:
    """loss[p] = sum_n costs[p, n] max(0, 1 - signs[p, n] scores[p, n])^2, one-vs-rest.

    Attributes:
        signs: (P, n), +1 where the image is of the class, -1 where not.
        costs: (P, n), C times the weight of the image; 0 where it is held out.

    Source:
        Fan et al., LIBLINEAR, JMLR 9 (2008), eq. 2; the same as LinearSVC(loss="squared_hinge").

    >>> loss = SquaredHinge(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 1.0]]))
    >>> loss.value(torch.tensor([[2.0, 0.0]]))  # the first image is beyond its margin, the second 1 short of it
    tensor([1.], dtype=torch.float64)
    """

    signs: Tensor
    costs: Tensor
    group: ClassVar[int] = 1

    @property
    def rows(self) -> int:
        return len(self.signs)

    def select(self, groups: Tensor) -> SquaredHinge:
        return SquaredHinge(self.signs.index_select(0, groups), self.costs.index_select(0, groups))

    def of_images(self, images: slice) -> SquaredHinge:
        return SquaredHinge(self.signs[:, images], self.costs[:, images])

    def slack(self, scores: Tensor) -> Tensor:
        """max(0, 1 - signs scores), (P, n): how far each image is short of its margin."""
        return torch.addcmul(
            torch.ones((), dtype=scores.dtype, device=scores.device), self.signs, scores, value=-1
        ).clamp_min_(0)

    def value(self, scores: Tensor) -> Tensor:
        slack = self.slack(scores)
        return (self.costs * slack.square_()).sum(1, dtype=torch.float64)

    def residual(self, scores: Tensor) -> Tensor:
        return self.slack(scores).mul_(self.costs).mul_(self.signs).mul_(-2)

    def curvature(self, scores: Tensor) -> Tensor:
        return (self.slack(scores) > 0) * self.costs * 2

    def curvature_product(self, curvature: Tensor, change: Tensor) -> Tensor:
        return curvature * change

    def mean_curvature(self, curvature: Tensor) -> float:
        return float(curvature.mean(dtype=torch.float64))

    def dual_terms(self, scores: Tensor, duals: Tensor) -> Tensor:
        """(P,) float64: the duality gap, but for the distance of the weights from those of the dual variables.

        sum_n of (2 costs slack - duals)^2 / (4 costs) short of the margin, and beyond it of
        duals (signs scores - 1) + duals^2 / (4 costs); duals are (P, n), >= 0, and 0 for images held out.
        """
        margins = self.signs * scores
        quarter = 0.25 / self.costs
        terms = (2 * self.costs * (1 - margins) - duals).square_().mul_(quarter)
        terms = torch.where(margins > 1, duals * (margins - 1) + duals.square() * quarter, terms)
        return torch.where(self.costs > 0, terms, 0.0).sum(1, dtype=torch.float64)

    def largest_curvature(self) -> float:
        return 2 * float(self.costs.max())

    def extra_curvature(self, curvature: Tensor, extra_column: Tensor) -> Tensor:
        return (curvature @ extra_column.square()).double()[:, None, None]


@dataclass(frozen=True)
class CrossEntropy:
    """loss[g] = sum_n costs[g, n] (-log softmax(scores[g, :, n])[labels[n]]), multinomial.

    Scores are (G K, n): the K rows of group g follow each other.

    Attributes:
        labels: (n,) 0..K-1.
        costs: (G, n), C times the weight of the image; 0 where it is held out.
        group: K.
    """

    labels: Tensor
    costs: Tensor
    group: int

    @property
    def rows(self) -> int:
        return len(self.costs) * self.group

    def select(self, groups: Tensor) -> CrossEntropy:
        return CrossEntropy(self.labels, self.costs[groups], self.group)

    def of_images(self, images: slice) -> CrossEntropy:
        return CrossEntropy(self.labels[images], self.costs[:, images], self.group)

    def _grouped(self, rows: Tensor) -> Tensor:
        return rows.view(-1, self.group, rows.shape[1])

    def value(self, scores: Tensor) -> Tensor:
        # As log(1 + sum of exp(others - own)): of an image that is told apart well, the difference of two logarithms
        # would be rounding, and C times that is a large part of f.
        grouped = self._grouped(scores)
        index = self.labels.expand(len(grouped), 1, -1)
        excess = grouped - grouped.gather(1, index)
        excess.scatter_(1, index, -torch.inf)
        most = excess.amax(1).clamp_min_(0)
        others = excess.sub_(most[:, None]).exp_().sum(1)
        losses = torch.log1p(others + torch.expm1(-most)) + most
        return (losses * self.costs).sum(1, dtype=torch.float64)

    def residual(self, scores: Tensor) -> Tensor:
        probabilities = torch.softmax(self._grouped(scores), 1)
        index = self.labels.expand(len(probabilities), 1, -1)
        # The own class has minus the sum of the others, not its probability less 1: the same, without cancellation.
        probabilities.scatter_(1, index, 0.0)
        probabilities.scatter_(1, index, -probabilities.sum(1, keepdim=True))
        return probabilities.mul_(self.costs[:, None]).view_as(scores)

    def curvature(self, scores: Tensor) -> Tensor:
        return torch.softmax(self._grouped(scores), 1).view_as(scores)

    def curvature_product(self, curvature: Tensor, change: Tensor) -> Tensor:
        probabilities = self._grouped(curvature)
        moved = probabilities * self._grouped(change)
        mean = moved.sum(1, keepdim=True)
        return moved.addcmul_(probabilities, mean, value=-1).mul_(self.costs[:, None]).view_as(change)

    def mean_curvature(self, curvature: Tensor) -> float:
        probabilities = self._grouped(curvature)
        spread = probabilities * (1 - probabilities) * self.costs[:, None]
        return float(spread.mean(dtype=torch.float64))

    def largest_curvature(self) -> float:
        return 0.5 * float(self.costs.max())

    def extra_curvature(self, curvature: Tensor, extra_column: Tensor) -> Tensor:
        probabilities = self._grouped(curvature).double()
        weighted = probabilities * (self.costs * extra_column.square())[:, None]
        return torch.diag_embed(weighted.sum(2)) - weighted @ probabilities.mT


Objective = SquaredHinge | CrossEntropy
