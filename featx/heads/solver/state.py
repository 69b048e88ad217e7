"""Where many problems are on their way, and what is read off a point of theirs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featx.heads.solver.linear_algebra.space import Space


@dataclass
class State:
    """Where P problem rows are.

    Attributes:
        coef: (P, width) coefficients.
        scores: (P, n), what the coefficients give for all images.
        gap: (G,) float64, proven bound on f - f*, per group; infinite before the first step.
        value: (G,) float64, f.
        certified: (G,) bool, gap <= tolerance * min(f, f(0) - f).
        steps: (G,) Newton steps taken.
    """

    coef: Tensor
    scores: Tensor
    gap: Tensor
    value: Tensor
    certified: Tensor
    steps: Tensor

    @classmethod
    def zero(cls, space: Space, rows: int, group: int, n: int, device: torch.device) -> State:
        """All weights 0."""
        groups = rows // group
        return cls(
            torch.zeros(rows, space.width, dtype=space.dtype, device=device),
            torch.zeros(rows, n, dtype=space.dtype, device=device),
            torch.full((groups,), torch.inf, dtype=torch.float64, device=device),
            torch.full((groups,), torch.inf, dtype=torch.float64, device=device),
            torch.zeros(groups, dtype=torch.bool, device=device),
            torch.zeros(groups, dtype=torch.int64, device=device),
        )

    def to(self, space: Space) -> State:
        """The same coef for a space of another number type; their scores are computed again."""
        coef = self.coef.to(space.dtype)
        return replace(self, coef=coef, scores=space.decision_function(coef))

    def select(self, groups: Tensor, group: int) -> State:
        """The state of some of the groups."""
        rows = rows_of(groups, group)
        return State(
            self.coef.index_select(0, rows),
            self.scores.index_select(0, rows),
            self.gap[groups],
            self.value[groups],
            self.certified[groups],
            self.steps[groups],
        )

    def put(self, groups: Tensor, group: int, part: State) -> None:
        """Store what became of some of the groups."""
        rows = rows_of(groups, group)
        self.coef.index_copy_(0, rows, part.coef.to(self.coef.dtype))
        self.scores.index_copy_(0, rows, part.scores.to(self.scores.dtype))
        self.gap[groups] = part.gap
        self.value[groups] = part.value
        self.certified[groups] = part.certified
        self.steps[groups] = part.steps


def rows_of(groups: Tensor, group: int) -> Tensor:
    """Indices of the problem rows of some groups."""
    if group == 1:
        return groups
    return (groups[:, None] * group + torch.arange(group, device=groups.device)).flatten()


def penalty(space: Space, coef: Tensor, scores: Tensor) -> Tensor:
    """1/2 |w|^2 of coef, (P,); a free intercept does not count."""
    return 0.5 * regular_dot(space, coef, coef, scores)


def regular_dot(space: Space, coef: Tensor, others: Tensor, scores_of_others: Tensor) -> Tensor:
    found = space.dot(coef, others, scores_of_others)
    if space.extra_column is None or space.extra_penalty == 1:
        return found
    return found - coef[:, -1].double() * others[:, -1].double()


def regular(space: Space, coef: Tensor) -> Tensor:
    """The gradient of the penalty: the coef themselves, but no free intercept."""
    regular = coef.clone()
    if space.extra_column is not None:
        regular[:, -1] *= space.extra_penalty
    return regular


def without_common_intercept(space: Space, coef: Tensor, group: int) -> Tensor:
    """Take out, in place, the same constant in all free intercepts of a softmax, which nothing but rounding moves."""
    if group > 1 and space.extra_column is not None and space.extra_penalty == 0:
        intercepts = coef[:, -1].view(-1, group)
        intercepts -= intercepts.mean(1, keepdim=True)
    return coef


def per_group(rows: Tensor, group: int) -> Tensor:
    rows = rows.double()
    return rows if group == 1 else rows.view(-1, group).sum(1)
