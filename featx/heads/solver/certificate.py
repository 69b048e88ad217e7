"""How far heads are from their optimum at most, by the features themselves and not by products of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.linear_algebra.matmul import multiply
from featx.heads.solver.objectives import Objective, SquaredHinge


class Proof:
    """Duality gaps of weights on some features."""

    def __init__(self, blocks: Blocks, intercept: str, scaling: float, tolerance: float) -> None:
        """Args as for `path.Solver`; a gap within `tolerance` of its objective is not sharpened further."""
        self._blocks, self._intercept, self._scaling, self._tolerance = blocks, intercept, scaling, tolerance

    def certificate(
        self,
        objective: Objective,
        weights: Tensor,
        bias: Tensor,
        dual: tuple[Tensor, Tensor] | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Gaps and values, from the features and not from products of them.

        Args:
            dual: of squared hinges in Gram form, whose coefficients are dual variables, the coef and `along_mean`.
        """
        scores = torch.empty(len(weights), self._blocks.n, dtype=dtype, device=weights.device)
        for rows, values in self._blocks.rows(dtype):
            multiply(weights.to(dtype), values.T, out=scores[:, rows])
        scores += (weights @ self._blocks.mean + bias).to(dtype)[:, None]
        own = bias / self._scaling if self._intercept == "penalised" else torch.zeros_like(bias)
        penalty = 0.5 * (weights.square().sum(1) + own.square())
        value = objective.value(scores) + penalty.view(-1, objective.group).sum(1)
        if dual is not None and isinstance(objective, SquaredHinge):
            gap = self._gap_by_dual(objective, value, own, scores, *dual)
            if bool((gap <= self._tolerance * value).all()):
                return gap, value
            return torch.minimum(gap, self._gap_by_gradient(objective, weights, own, scores)), value
        return self._gap_by_gradient(objective, weights, own, scores), value

    def _gap_by_dual(
        self, objective: SquaredHinge, value: Tensor, own: Tensor, scores: Tensor, coef: Tensor, along: Tensor
    ) -> Tensor:
        """P - D at the dual variables max(signs beta, 0); see `duality.gap_by_dual`.

        Args:
            coef, along: what the weights were made of, see `Gram.along_mean`.
        """
        duals = (objective.signs * coef[:, : self._blocks.n]).clamp_min(0) * (objective.costs > 0)
        coefficients = objective.signs * duals
        total = coefficients.sum(1, dtype=torch.float64)
        # The weights are those of the coef. What these have beside the dual variables is a few small coefficients:
        # how long that can be is known without a pass over the features.
        beside = coef[:, : self._blocks.n] - coefficients
        scaling = self._scaling if self._intercept == "penalised" else 0.0
        known: Tensor = objective.dual_terms(scores, duals) + 0.5 * (own - scaling * total).square()
        longest = (along - total).abs() * self._blocks.mean.norm() + beside.double().abs() @ self._blocks.lengths
        gap: Tensor = known + 0.5 * longest.square()
        if bool((gap <= self._tolerance * value).all()):
            return gap
        apart = self._blocks.combine(beside).double().addr_(along - total, self._blocks.mean)
        found: Tensor = known + 0.5 * apart.square().sum(1)
        return found

    def _gap_by_gradient(self, objective: Objective, weights: Tensor, own: Tensor, scores: Tensor) -> Tensor:
        """1/2 |gradient|^2, and what a free intercept still has to go; see `newton`."""
        group = objective.group
        residual = objective.residual(scores)
        total = residual.sum(1, dtype=torch.float64)
        gradient = (weights + self._blocks.combine(residual).double()).addr_(total, self._blocks.mean)
        scaling = self._scaling if self._intercept == "penalised" else 0.0
        squares = gradient.square().sum(1) + (own + scaling * total).square()
        gap = 0.5 * squares.view(-1, group).sum(1)
        if self._intercept != "free":
            return gap
        ones = torch.ones(self._blocks.n, dtype=scores.dtype, device=weights.device)
        matrix = objective.extra_curvature(objective.curvature(scores), ones)
        scale = matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp_min(1e-300)
        intercept_gradient = total.view(-1, group, 1)
        left: Tensor = (intercept_gradient * torch.linalg.solve(matrix + scale / group**2, intercept_gradient)).sum(
            (1, 2)
        )
        return gap + left


@dataclass(frozen=True)
class Solution:
    """Weights of one row per class, whatever the number of classes.

    Attributes:
        weights, bias: (K, D) and (K,) float64, K >= 2, for the features the solver was given.
        gaps: per problem (class of an SVM; one for a softmax), proven bound on f - f*, on the features themselves.
        values: per problem, f.
        certified: per problem, gap <= tolerance * min(f, f(0) - f).
    """

    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    gaps: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    certified: npt.NDArray[np.bool_]

    @property
    def gap(self) -> float:
        """The largest of the gaps, relative to its objective."""
        return float((self.gaps / np.maximum(self.values, 1e-300)).max())

    def uncertified(self, c: float) -> list[Uncertified]:
        """The problems that could not be proven."""
        return [
            Uncertified(c, int(problem), None, float(self.gaps[problem] / max(self.values[problem], 1e-300)))
            for problem in np.flatnonzero(~self.certified)
        ]


@dataclass(frozen=True)
class Uncertified:
    """A problem whose optimum could not be proven.

    Attributes:
        problem: the class of an SVM (0-based), 0 for a softmax.
        fold: None for the fit on all images to train on.
        gap: bound on how far f is above its optimum, relative to f.
    """

    c: float
    problem: int
    fold: int | None
    gap: float
