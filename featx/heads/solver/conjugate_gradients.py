"""Steps by preconditioned conjugate gradients: all problems share each product, and those that are done leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featx.heads.solver.linear_algebra.space import Space
from featx.heads.solver.objectives import Objective
from featx.heads.solver.state import State, penalty, per_group, regular, rows_of, without_common_intercept

FALL = 0.1  # to which share a step brings the gradient of the quadratic model down, at first


@dataclass
class _Descent:
    """Conjugate gradients under way, for the groups `names`."""

    names: Tensor
    objective: Objective
    curvature: Tensor
    residual: Tensor
    direction: Tensor
    scores_of_direction: Tensor
    step: Tensor
    scores_of_step: Tensor
    energy: Tensor
    goal: Tensor
    budget: Tensor

    def hessian_vector_product(self, space: Space) -> tuple[Tensor, Tensor]:
        """The second derivative of the losses times the direction, (P, width), and that along the direction, (P,).

        Where the scores of the direction are not needed before, they are computed on the way.
        """
        if space.metric_needs_scores:
            hessian_scores = self.objective.curvature_product(self.curvature, self.scores_of_direction)
            return space.adjoint(hessian_scores), (hessian_scores * self.scores_of_direction).sum(1)

        def curvature_product(images: slice, scores: Tensor) -> Tensor:
            return self.objective.of_images(images).curvature_product(self.curvature[:, images], scores)

        self.scores_of_direction, back = space.hessian_vector_product(self.direction, curvature_product)
        return back, space.dot(self.direction, back, self.scores_of_direction)

    def only(self, keep: Tensor) -> _Descent:
        rows = rows_of(keep, self.objective.group)
        parts = {name: getattr(self, name)[rows] for name in _OF_ROWS}
        return _Descent(
            names=self.names[keep],
            objective=self.objective.select(keep),
            energy=self.energy[keep],
            goal=self.goal[keep],
            budget=self.budget[keep],
            **parts,
        )


_OF_ROWS = ("curvature", "residual", "direction", "scores_of_direction", "step", "scores_of_step")


def conjugate_gradients(
    space: Space,
    objective: Objective,
    state: State,
    gradient: Tensor,
    scores_of_gradient: Tensor,
    budget: Tensor,
    fall: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise the quadratic models until the share `fall` of their gradients is left, or for `budget` products."""
    group = objective.group
    curvature = objective.curvature(state.scores)
    space.prepare(objective.mean_curvature(curvature))
    residual = without_common_intercept(space, -gradient, group)
    direction = space.precondition(residual)
    scores_of_direction = direction  # not used
    if space.metric_needs_scores:
        scores_of_direction = -scores_of_gradient if direction is residual else space.decision_function(direction)
    direction = direction.clone() if direction is residual else direction
    energy = per_group(space.dot(residual, direction, scores_of_direction), group)
    step, scores_of_step = torch.zeros_like(residual), torch.zeros_like(state.scores)
    exhausted = torch.zeros(len(energy), dtype=torch.bool, device=energy.device)
    now = _Descent(
        torch.arange(len(energy), device=energy.device),
        objective, curvature, residual, direction, scores_of_direction,
        torch.zeros_like(residual), torch.zeros_like(state.scores), energy, fall**2 * energy, budget,
    )  # fmt: skip
    product = 0
    while True:
        product += 1
        back, along_it = now.hessian_vector_product(space)
        quadratic = 2 * penalty(space, now.direction, now.scores_of_direction) + along_it
        along = (now.energy / per_group(quadratic, group).clamp_min(1e-300)).clamp_min(0)
        rate = along.repeat_interleave(group).to(space.dtype)[:, None]
        now.step.addcmul_(rate, now.direction)
        now.scores_of_step.addcmul_(rate, now.scores_of_direction)
        now.residual.addcmul_(rate, regular(space, now.direction).add_(back), value=-1)
        following = space.precondition(without_common_intercept(space, now.residual, group))
        out = now.budget <= product
        scores_of_following = following
        if bool(out.all()):
            remaining = torch.full_like(now.energy, torch.inf)
        else:
            scores_of_following = space.decision_function(following) if space.metric_needs_scores else following
            remaining = per_group(space.dot(now.residual, following, scores_of_following), group)
        reached = ~(remaining > now.goal)
        done = out | reached
        if bool(done.any()):
            left = torch.nonzero(done)[:, 0]
            rows, all_rows = rows_of(left, group), rows_of(now.names[left], group)
            step[all_rows], scores_of_step[all_rows] = now.step[rows], now.scores_of_step[rows]
            exhausted[now.names[left]] = ~reached[left]
            keep = torch.nonzero(~done)[:, 0]
            if not len(keep):
                return step, scores_of_step, exhausted
            kept = rows_of(keep, group)
            following, scores_of_following, remaining = following[kept], scores_of_following[kept], remaining[keep]
            now = now.only(keep)
        ratio = (remaining / now.energy.clamp_min(1e-300)).repeat_interleave(group).to(space.dtype)[:, None]
        now.direction = torch.addcmul(following, ratio, now.direction)
        if space.metric_needs_scores:
            now.scores_of_direction = torch.addcmul(scores_of_following, ratio, now.scores_of_direction)
        now.energy = remaining
