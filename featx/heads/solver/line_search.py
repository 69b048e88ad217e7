"""How far to go along a Newton step."""

from __future__ import annotations

import torch
from torch import Tensor

from featx.heads.solver.linear_algebra.space import Space
from featx.heads.solver.objectives import Objective
from featx.heads.solver.state import State, penalty, per_group, regular_dot

SEARCH_STEPS = 12
SEARCH_TOLERANCE = 0.02


def search_line(
    space: Space, objective: Objective, state: State, step: Tensor, scores_of_step: Tensor, wanted: Tensor
) -> Tensor:
    """How far along its step each group is lowest, (G,) float64; Newton in one variable, kept inside a bracket.

    Where the whole step changes f by much less than the gap that is wanted, rounding is all there is to see: the step
    is taken as it is. It may still put in order what f does not feel, coefficients along directions without images.
    """
    group = objective.group
    slope = per_group(regular_dot(space, step, state.coef, state.scores), group)
    penalty_curvature = 2 * per_group(penalty(space, step, scores_of_step), group).clamp_min(0)
    length = torch.ones_like(slope)
    low, high = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    for _ in range(SEARCH_STEPS):
        rate = length.repeat_interleave(group).to(space.dtype)[:, None]
        scores = torch.addcmul(state.scores, rate, scores_of_step)
        slope_of_loss = (objective.residual(scores) * scores_of_step).sum(1)
        hessian_scores = objective.curvature_product(objective.curvature(scores), scores_of_step)
        here = slope + length * penalty_curvature + per_group(slope_of_loss, group)
        second = penalty_curvature + per_group((hessian_scores * scores_of_step).sum(1), group)
        low, high = torch.where(here < 0, length, low), torch.where(here >= 0, length, high)
        following = length - here / second.clamp_min(1e-300)
        bounded = torch.where(torch.isinf(high), 8 * length, high)
        outside = ~((following > low) & (following < bounded))
        middle = torch.where(torch.isinf(high), 2 * length, (low + high) / 2)
        following = torch.where(outside & (here != 0), middle, following)
        flat = here.abs() <= SEARCH_TOLERANCE * wanted
        following = torch.where(flat, length, following)
        if bool(((following - length).abs() <= SEARCH_TOLERANCE * length).all()):
            return following
        length = following
    return length


def optimise_extra(space: Space, objective: Objective, state: State) -> None:
    """Bring the extra_column coordinate to its optimum for the others as they are, in place."""
    group, extra_column, weight = objective.group, space.extra_column, space.extra_penalty
    assert extra_column is not None
    for _ in range(SEARCH_STEPS):
        last = state.coef[:, -1].double().view(-1, group)
        slope_of_loss = (objective.residual(state.scores) @ extra_column).double().view(-1, group) + weight * last
        matrix = objective.extra_curvature(objective.curvature(state.scores), extra_column)
        scale = matrix.diagonal(dim1=1, dim2=2).sum(1)
        # The same constant added to all intercepts of a softmax changes nothing; this picks the change of mean zero.
        if group > 1:
            matrix = matrix + (scale / group**2)[:, None, None]
        matrix.diagonal(dim1=1, dim2=2).add_(weight + 1e-12 * scale[:, None] + 1e-300)
        change = torch.linalg.solve(matrix, -slope_of_loss[:, :, None])[:, :, 0]
        change = torch.where(scale[:, None] + weight > 0, change.clamp(-1.0, 1.0), 0.0)
        rows = change.flatten().to(state.coef.dtype)
        state.coef[:, -1] += rows
        state.scores.addr_(rows, extra_column)
        if bool((change.abs() <= 1e-6 * (1 + last.abs())).all()):
            return
