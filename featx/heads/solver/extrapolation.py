"""The next C's optimum, extrapolated from those of the last two: the lowest point of the plane they span.

Along a path of C a softmax's weights first grow in proportion to C and then level off; most of the way to the next
optimum is in the directions of the last one and of the one before. In that plane the objective is minimised without a
product: the scores of both are known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featx.heads.solver.linear_algebra.space import Space
from featx.heads.solver.objectives import Objective
from featx.heads.solver.state import State, per_group, regular_dot

_STEPS = 8
_HALVINGS = 10
_ENOUGH = 1e-4  # of f in a step
_RIDGE = 1e-9  # of the second derivative, for directions that are the same


def extrapolate(space: Space, objective: Objective, state: State, before: tuple[Tensor, Tensor] | None) -> None:
    """Move every group to the lowest point of the plane through 0, its own point and an earlier one, in place.

    Args:
        before: earlier coef (P, width) and their scores (P, n); None for the line through 0 alone.
    """
    coef, scores = [state.coef.clone()], [state.scores.clone()]
    if before is not None:
        # Only what the earlier point has beside the later one: they are almost parallel while weights grow like C.
        parallel = _dot(before[1], scores[0], objective.group) / _dot(scores[0], scores[0], objective.group)
        share = _spread(torch.nan_to_num(parallel), objective.group, space.dtype)
        coef.append(torch.addcmul(before[0], share, coef[0], value=-1))
        scores.append(torch.addcmul(before[1], share, scores[0], value=-1))
    plane = _Plane(space, objective, coef, scores)
    place = plane.lowest()
    plane.put(place, state)


class _Plane:
    """Coefficients (1 + a) first + b second for every group; a place is (G, 2) float64, or (G, 1) on a line."""

    def __init__(self, space: Space, objective: Objective, coef: list[Tensor], scores: list[Tensor]) -> None:
        self.objective, self.coef, self.scores = objective, coef, scores
        pairs = [
            [per_group(regular_dot(space, one, other, own), objective.group) for one in coef]
            for other, own in zip(coef, scores, strict=True)
        ]
        products = torch.stack([torch.stack(row, 1) for row in pairs], 1)
        self.products = (products + products.mT) / 2  # of the penalised coordinates

    def lowest(self) -> Tensor:
        """By Newton's method with halved steps; f never rises, so the worst guess is to stay."""
        place = torch.zeros(len(self.products), len(self.coef), dtype=torch.float64, device=self.products.device)
        value, scores = self._at(place)
        for _ in range(_STEPS):
            step = self._newton(place, scores)
            for _ in range(_HALVINGS):
                reached, there = self._at(place + step)
                worse = ~(reached <= value)
                if not bool(worse.any()):
                    break
                step = torch.where(worse[:, None], step / 2, step)
            place = torch.where((reached <= value)[:, None], place + step, place)
            fell = (value - reached).clamp_min(0)
            value, scores = self._at(place) if bool((reached > value).any()) else (reached, there)
            if bool((fell <= _ENOUGH * value).all()):
                break
        return place

    def put(self, place: Tensor, state: State) -> None:
        state.scores[:] = self._combined(self.scores, place)
        state.coef[:] = self._combined(self.coef, place)

    def _combined(self, vectors: list[Tensor], place: Tensor) -> Tensor:
        group, dtype = self.objective.group, vectors[0].dtype
        found = vectors[0] * _spread(1 + place[:, 0], group, dtype)
        for vector, along in zip(vectors[1:], place.T[1:], strict=True):
            found.addcmul_(vector, _spread(along, group, dtype))
        return found

    def _weights(self, place: Tensor) -> Tensor:
        return torch.cat([1 + place[:, :1], place[:, 1:]], 1)

    def _at(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Values (G,) and scores of a place."""
        scores, weights = self._combined(self.scores, place), self._weights(place)
        penalty = 0.5 * torch.einsum("gi,gij,gj->g", weights, self.products, weights)
        return self.objective.value(scores) + penalty, scores

    def _newton(self, place: Tensor, scores: Tensor) -> Tensor:
        objective, group = self.objective, self.objective.group
        residual, curvature = objective.residual(scores), objective.curvature(scores)
        gradient = torch.stack([_dot(residual, own, group) for own in self.scores], 1)
        gradient += torch.einsum("gij,gj->gi", self.products, self._weights(place))
        hessian = self.products.clone()
        for column, own in enumerate(self.scores):
            hessian_scores = objective.curvature_product(curvature, own)
            for row, other in enumerate(self.scores):
                hessian[:, row, column] += _dot(hessian_scores, other, group)
        hessian.diagonal(dim1=1, dim2=2).mul_(1 + _RIDGE)
        return torch.nan_to_num(-torch.linalg.solve_ex(hessian, gradient[:, :, None])[0][:, :, 0])


def _dot(one: Tensor, other: Tensor, group: int) -> Tensor:
    return per_group((one * other).sum(1), group)


def _spread(of_groups: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    return of_groups.repeat_interleave(group).to(dtype)[:, None]
