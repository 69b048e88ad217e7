"""Steps by preconditioned conjugate gradients: all problems share each product, and those that are done leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featx.heads.solver.objectives import Objective
from featx.heads.solver.spaces import Space
from featx.heads.solver.state import State, penalty, per_group, regular, rows_of, without_common_intercept

FALL = 0.1  # to which share a step brings the gradient of the quadratic model down, at first


@dataclass
class _Descent:
    """Conjugate gradients under way, for the groups `names`."""

    names: Tensor
    objective: Objective
    curvature: Tensor
    residual: Tensor
    search: Tensor
    image_of_search: Tensor
    step: Tensor
    image_of_step: Tensor
    energy: Tensor
    goal: Tensor
    budget: Tensor

    def bend(self, space: Space) -> tuple[Tensor, Tensor]:
        """The second derivative of the losses times the search, (P, width), and that along the search, (P,).

        Where the image of the search is not needed before, it is made on the way.
        """
        if space.metric_needs_images:
            curved = self.objective.curve(self.curvature, self.image_of_search)
            return space.adjoint(curved), (curved * self.image_of_search).sum(1)

        def curve(images: slice, scores: Tensor) -> Tensor:
            return self.objective.of_images(images).curve(self.curvature[:, images], scores)

        self.image_of_search, back = space.bend(self.search, curve)
        return back, space.dot(self.search, back, self.image_of_search)

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


_OF_ROWS = ("curvature", "residual", "search", "image_of_search", "step", "image_of_step")


def conjugate_gradients(
    space: Space, objective: Objective, state: State, gradient: Tensor, image: Tensor, budget: Tensor, fall: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise the quadratic models until the share `fall` of their gradients is left, or for `budget` products."""
    group = objective.group
    curvature = objective.curvature(state.scores)
    space.prepare(objective.mean_curvature(curvature))
    residual = without_common_intercept(space, -gradient, group)
    search = space.precondition(residual)
    image_of_search = search  # looked at by nobody
    if space.metric_needs_images:
        image_of_search = -image if search is residual else space.image(search)
    search = search.clone() if search is residual else search
    energy = per_group(space.dot(residual, search, image_of_search), group)
    step, image_of_step = torch.zeros_like(residual), torch.zeros_like(state.scores)
    tired = torch.zeros(len(energy), dtype=torch.bool, device=energy.device)
    now = _Descent(
        torch.arange(len(energy), device=energy.device),
        objective, curvature, residual, search, image_of_search,
        torch.zeros_like(residual), torch.zeros_like(state.scores), energy, fall**2 * energy, budget,
    )  # fmt: skip
    product = 0
    while True:
        product += 1
        back, along_it = now.bend(space)
        bent = 2 * penalty(space, now.search, now.image_of_search) + along_it
        along = (now.energy / per_group(bent, group).clamp_min(1e-300)).clamp_min(0)
        rate = along.repeat_interleave(group).to(space.dtype)[:, None]
        now.step.addcmul_(rate, now.search)
        now.image_of_step.addcmul_(rate, now.image_of_search)
        now.residual.addcmul_(rate, regular(space, now.search).add_(back), value=-1)
        following = space.precondition(without_common_intercept(space, now.residual, group))
        out = now.budget <= product
        image_of_following = following
        if bool(out.all()):
            remaining = torch.full_like(now.energy, torch.inf)
        else:
            image_of_following = space.image(following) if space.metric_needs_images else following
            remaining = per_group(space.dot(now.residual, following, image_of_following), group)
        reached = ~(remaining > now.goal)
        done = out | reached
        if bool(done.any()):
            left = torch.nonzero(done)[:, 0]
            rows, all_rows = rows_of(left, group), rows_of(now.names[left], group)
            step[all_rows], image_of_step[all_rows] = now.step[rows], now.image_of_step[rows]
            tired[now.names[left]] = ~reached[left]
            keep = torch.nonzero(~done)[:, 0]
            if not len(keep):
                return step, image_of_step, tired
            kept = rows_of(keep, group)
            following, image_of_following, remaining = following[kept], image_of_following[kept], remaining[keep]
            now = now.only(keep)
        turn = (remaining / now.energy.clamp_min(1e-300)).repeat_interleave(group).to(space.dtype)[:, None]
        now.search = torch.addcmul(following, turn, now.search)
        if space.metric_needs_images:
            now.image_of_search = torch.addcmul(image_of_following, turn, now.image_of_search)
        now.energy = remaining
