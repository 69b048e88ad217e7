"""Duality gaps of a state, by the gradient or by dual variables; see `newton` for what they prove."""

from __future__ import annotations

import torch
from torch import Tensor

from featx.heads.solver.linear_algebra.space import Space
from featx.heads.solver.objectives import Objective, SquaredHinge
from featx.heads.solver.state import State, penalty, per_group, regular


def gap_by_gradient(space: Space, objective: Objective, state: State) -> tuple[Tensor, Tensor]:
    """Store values and gaps of a state, and return its gradient and, where the metric needs it, its scores."""
    gradient = regular(space, state.coef) + space.adjoint(objective.residual(state.scores))
    scores_of_gradient = space.decision_function(gradient) if space.metric_needs_scores else gradient
    # A negative one comes from products that rounding has made indefinite: its size is what is not known.
    state.gap = per_group(penalty(space, gradient, scores_of_gradient).abs(), objective.group)
    weight = per_group(penalty(space, state.coef, state.scores), objective.group)
    state.value = weight + objective.value(state.scores)
    return gradient, scores_of_gradient


def dual_is_at_hand(space: Space, objective: Objective) -> bool:
    """Whether coef are dual variables: squared hinges in Gram form, no unpenalised coordinate."""
    unpenalised = space.extra_column is not None and space.extra_penalty == 0
    return isinstance(objective, SquaredHinge) and space.metric_needs_scores and not unpenalised


def gap_by_dual(space: Space, objective: SquaredHinge, state: State, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The duality gap of squared hinges at the coef themselves; infinite where this proves nothing.

    At large C the residual magnifies the rounding of the scores by 2 C; the coefficients do not, and no product
    is needed. With dual variables a = max(signs beta, 0) of the coefficients beta the gap is
    1/2 |w(beta) - w(signs a)|^2 and the objective's `dual_terms`.

    Returns:
        The gap (G,), infinite where it is too large to be of use, and its sum alone, which measures progress but
        proves nothing.
    """
    unknown = torch.full_like(state.value, torch.inf)
    coef = state.coef[:, : state.scores.shape[1]]
    duals = (objective.signs * coef).clamp_min_(0) * (objective.costs > 0)
    measure = objective.dual_terms(state.scores, duals)
    hopeful = torch.nonzero(measure <= wanted)[:, 0]
    if len(hopeful):
        unknown[hopeful] = measure[hopeful]
        # Coefficients of the wrong sign, or of images held out, are no dual variables: their weights count.
        dual_coef = objective.signs[hopeful] * duals[hopeful]
        if space.extra_column is not None:
            last = (dual_coef.double() @ space.extra_column.double()).to(space.dtype)
            dual_coef = torch.cat([dual_coef, last[:, None]], 1)
        apart = state.coef[hopeful] - dual_coef
        if bool((apart[:, : coef.shape[1]] != 0).any()):
            unknown[hopeful] += 0.5 * space.dot(apart, apart, space.decision_function(apart)).abs()
        else:
            unknown[hopeful] += 0.5 * apart[:, -1].double().square()
    return unknown, measure
