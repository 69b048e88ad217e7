"""Where the weights live: on the D values (`Primal`), or on the n images (`Gram`).

An optimum lies in the span of the images, w = sum_n beta_n x_n (the representer theorem; Schoelkopf, Herbrich &
Smola, COLT 2001). With K = X X^T the scores are K beta and the penalty is 1/2 beta.K beta: for few images with many
values one n x n matrix, made once, serves every class, every C and every fold.

Both offer the same operations to the solver, which does not know in which of them it works. `coef` is (P, width), a
row of coefficients for every problem; its decision function gives the scores of all images, (P, n). Two traps are
taken care of here:

- Features after a ReLU have a mean far from 0, and the products of the mean swallow the digits of float32 that
  tell images apart. Both spaces hold centred features. With a free intercept that changes nothing; with a penalised
  one the mean direction is a coordinate of its own: K = K' + v v^T, where v is the part of [x; s] along (mean, s)
  and K' are the products of the rest. Its coefficient would follow from the others, but as a sum that cancels to a
  few digits.
- What cancels is summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

# Along a free intercept, for the preconditioner; saturated losses have no curvature.
LEAST_CURVATURE = 1e-3
CurvatureProduct = Callable[[slice, Tensor], Tensor]  # some images and their scores (P, b) to (P, b)


class Space(Protocol):
    """What the solver computes with; `coef` is (P, width).

    Attributes:
        extra_column: (n,) what a unit of the last coefficient adds to the scores, if that coefficient is a coordinate
            of its own beside the others (a free intercept, the mean direction); None without one.
        extra_penalty: 0 if that coordinate carries no penalty, else 1.
        largest: roughly the largest eigenvalue of the products of the centred features; 0 if not known.
        metric_needs_scores: whether `dot` looks at the scores it is given.
    """

    width: int
    dtype: torch.dtype
    extra_column: Tensor | None
    extra_penalty: float
    largest: float
    metric_needs_scores: bool

    def decision_function(self, coef: Tensor) -> Tensor:
        """The scores of coef on all images, (P, n)."""

    def adjoint(self, residual: Tensor) -> Tensor:
        """The gradient of a loss by the coefficients, from its derivative by the scores (P, n) -> (P, width)."""

    def hessian_vector_product(self, coef: Tensor, curvature_product: CurvatureProduct) -> tuple[Tensor, Tensor]:
        """The scores of coef, and the losses' Hessian times coef, in one pass over the features.

        Args:
            curvature_product: some images and their scores -> the second derivative of the losses times these scores.
        """

    def dot(self, coef: Tensor, others: Tensor, scores_of_others: Tensor) -> Tensor:
        """Inner products of coordinates, penalised or not, (P,) float64."""

    def prepare(self, curvature: float) -> None:
        """Make `precondition` fit a mean curvature of the losses."""

    def precondition(self, coef: Tensor) -> Tensor:
        """Roughly the inverse of the second derivative, times coef."""

    def weights(self, coef: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(P, D) and (P,) float64: weights and intercepts for the features as they are, by products in `dtype`."""
