"""Truncated Newton for many problems at once, and the proof that each one is done.

All problem rows (class x fold, of one C) take their steps together: one matrix product serves them all, and those
that are proven done leave. A step minimises the quadratic model of the objective by preconditioned conjugate
gradients, or exactly where `direct` finds that cheaper, and a search along it follows.

The proof: f = 1/2 |w|^2 + loss is 1-strongly convex, so f - f* <= 1/2 |gradient|^2; for these losses that is the
duality gap at the dual point the residual defines. A free intercept carries no penalty; it is brought to its own
optimum first (Newton in as many unknowns as the group has rows), and then the same holds for the rest. A problem is
done when the gap is at most tolerance * min(f, f(0) - f): relative to f alone says nothing at small C, where f is
almost f(0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featx.heads.solver.conjugate_gradients import FALL, conjugate_gradients
from featx.heads.solver.duality import dual_is_at_hand, gap_by_dual, gap_by_gradient
from featx.heads.solver.exact_steps import ExactSteps
from featx.heads.solver.line_search import optimise_extra, search_line
from featx.heads.solver.linear_algebra.space import Space
from featx.heads.solver.objectives import Objective, SquaredHinge
from featx.heads.solver.primal_exact_steps import PrimalExactSteps
from featx.heads.solver.state import State, penalty, rows_of

MAX_STEPS = 200
PATIENCE = 6  # steps without progress; then the arithmetic, not the problem, is at its end
PATIENCE_EXACT = 60  # the same in float64, where the problem may be at fault
ROUGH = 0.3  # share of the gap left after a step from which on the next steps are made finer
FINEST = 1e-6
PROGRESS = 1e-5  # of f in a step, if its gap has not fallen by half
LOST = 0.5  # of f above its lowest value: no step that was searched for can lead there
FEWEST_PRODUCTS = 4
MAX_PRODUCTS = 400


def minimise(
    space: Space,
    objective: Objective,
    state: State,
    *,
    tolerance: float,
    exact: ExactSteps | PrimalExactSteps | None = None,
    summed: bool = False,
) -> None:
    """Bring every group of `state` to its optimum, in place.

    Groups that cannot be certified in the arithmetic of the space are left at the best that was reached.

    Args:
        tolerance: of the certificate, see the module's docstring.
        exact: the means of exact steps; None for conjugate gradients only.
        summed: the scores of `state` are sums of others', not products of its coef.
    """
    _Newton(space, objective, state, tolerance, exact, summed=summed).run()


@dataclass
class _Iteration:
    """One step of the groups that are still under way: what they are, and where they want to go."""

    remaining: Tensor
    objective: Objective
    state: State
    step: Tensor
    scores_of_step: Tensor
    measure: Tensor
    exhausted: Tensor


class _Newton:
    def __init__(
        self,
        space: Space,
        objective: Objective,
        state: State,
        tolerance: float,
        exact: ExactSteps | PrimalExactSteps | None,
        *,
        summed: bool,
    ) -> None:
        self.space, self.objective, self.state, self.tolerance, self.exact = space, objective, state, tolerance, exact
        self.group = objective.group
        self.by_dual = dual_is_at_hand(space, objective)
        self.at_zero = objective.value(torch.zeros_like(state.scores))
        self.patience = PATIENCE if space.dtype == torch.float32 else PATIENCE_EXACT
        self.budget = torch.full_like(state.steps, _first_budget(space, objective))
        self.fall = torch.full_like(state.gap, FALL)
        self.best, self.lowest = torch.full_like(state.gap, torch.inf), torch.full_like(state.gap, torch.inf)
        self.since = torch.zeros_like(state.steps)
        # The lowest coef so far: rounding can make products indefinite, and then a step can lead anywhere.
        self.safe = state.coef.clone()
        self.safe_gap = torch.full_like(state.gap, torch.inf)
        # Whether the scores are sums of steps, not products of coef.
        self.summed = torch.full_like(state.certified, summed)
        state.certified[:] = False

    def run(self) -> None:
        remaining = torch.arange(len(self.state.gap), device=self.state.gap.device)
        for _ in range(MAX_STEPS):
            remaining = self._iterate(remaining)
            if not len(remaining):
                return

    def _iterate(self, remaining: Tensor) -> Tensor:
        """A step of the remaining groups; those that go on."""
        now = self.state.select(remaining, self.group)
        iteration = _Iteration(
            remaining, self.objective.select(remaining), now,
            torch.zeros_like(now.coef), torch.zeros_like(now.scores),
            torch.full_like(now.gap, torch.inf), torch.zeros_like(now.certified),
        )  # fmt: skip
        now.gap = torch.full_like(now.gap, torch.inf)
        open_ = torch.arange(len(remaining), device=remaining.device)
        if self.by_dual and isinstance(iteration.objective, SquaredHinge):
            open_ = self._prove_by_dual(iteration, iteration.objective)
            open_ = self._solve_exactly(iteration, open_)
        if len(open_):
            self._prove_by_gradient(iteration, open_)
        now.certified = (now.gap <= self._wanted(iteration)) | (now.gap == 0)
        self.budget[remaining[iteration.exhausted]] = (self.budget[remaining[iteration.exhausted]] * 2).clamp_max(
            MAX_PRODUCTS
        )
        return self._move(iteration)

    def _wanted(self, iteration: _Iteration) -> Tensor:
        """The gap at which a group is done."""
        value = iteration.state.value
        return self.tolerance * torch.minimum(value, (self.at_zero[iteration.remaining] - value).clamp_min(0))

    def _prove_by_dual(self, iteration: _Iteration, objective: SquaredHinge) -> Tensor:
        """Values and gaps without a product; which groups are not proven by them."""
        now = iteration.state
        now.value = penalty(self.space, now.coef, now.scores).double() + objective.value(now.scores)
        wanted = self._wanted(iteration)
        now.gap, iteration.measure = gap_by_dual(self.space, objective, now, wanted)
        return torch.nonzero(now.gap > wanted)[:, 0]

    def _solve_exactly(self, iteration: _Iteration, open_: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Exact steps for the open groups that are worth it; which are left.

        Args:
            gradient: of the open groups, where it is known.
        """
        if self.exact is None or not len(open_) or not isinstance(iteration.objective, SquaredHinge):
            return open_
        budget = self.budget[iteration.remaining]
        solved, steps = self.exact.steps(
            iteration.objective, iteration.state, open_, iteration.remaining, budget, gradient
        )
        iteration.step[solved], iteration.scores_of_step[solved] = steps, self.space.decision_function(steps)
        return open_[~torch.isin(open_, solved)]

    def _prove_by_gradient(self, iteration: _Iteration, open_: Tensor) -> None:
        """Gaps of the open groups, and steps for those that are not proven by them."""
        space, group = self.space, self.group
        part, asked = iteration.state.select(open_, group), iteration.objective.select(open_)
        if space.extra_column is not None and (space.extra_penalty == 0 or space.dtype == torch.float32):
            optimise_extra(space, asked, part)
        gradient, scores_of_gradient = gap_by_gradient(space, asked, part)
        iteration.state.put(open_, group, part)
        iteration.measure[open_] = torch.minimum(iteration.measure[open_], part.gap)
        further = torch.nonzero(~(part.gap <= self._wanted(iteration)[open_]))[:, 0]
        if not self.by_dual:
            left = self._solve_exactly(iteration, open_[further], gradient[further] if group == 1 else None)
            further = further[torch.isin(open_[further], left)]
        if len(further):
            rows, names = rows_of(further, group), open_[further]
            found = conjugate_gradients(
                space, asked.select(further), part.select(further, group), gradient[rows], scores_of_gradient[rows],
                self.budget[iteration.remaining[names]], self.fall[iteration.remaining[names]],
            )  # fmt: skip
            rows = rows_of(names, group)
            iteration.step[rows], iteration.scores_of_step[rows], iteration.exhausted[names] = found

    def _move(self, iteration: _Iteration) -> Tensor:
        """Take the steps of the groups that are not done; which groups go on."""
        remaining, now, group = iteration.remaining, iteration.state, self.group
        # What is proven of scores that were summed up step by step must be proven of the coef themselves.
        doubtful = now.certified & self.summed[remaining]
        if bool(doubtful.any()):
            rows = rows_of(torch.nonzero(doubtful)[:, 0], group)
            now.scores[rows] = self.space.decision_function(now.coef[rows])
            self.summed[remaining[doubtful]] = False
            now.certified &= ~doubtful
        lost = ~(now.value <= self.lowest[remaining] + LOST * self.lowest[remaining].abs())
        if bool(lost.any()):
            self._return_to_safety(iteration, torch.nonzero(lost)[:, 0])
        lowest = torch.nonzero((now.value <= self.lowest[remaining]) & ~doubtful)[:, 0]
        self.safe[rows_of(remaining[lowest], group)] = now.coef[rows_of(lowest, group)]
        self.safe_gap[remaining[lowest]] = now.gap[lowest]
        progress = (iteration.measure < 0.5 * self.best[remaining]) | (
            now.value < self.lowest[remaining] * (1 - PROGRESS)
        )
        self.since[remaining] = torch.where(progress, 0, self.since[remaining] + 1)
        # What is left of the gradient in a few bad directions can be most of the gap: then steps are too rough.
        rough = iteration.measure > ROUGH * self.best[remaining]
        self.fall[remaining] = torch.where(
            rough, (0.1 * self.fall[remaining]).clamp_min(FINEST), self.fall[remaining]
        )
        self.best[remaining] = torch.minimum(self.best[remaining], iteration.measure)
        self.lowest[remaining] = torch.minimum(self.lowest[remaining], now.value)
        broken = ~torch.isfinite(iteration.step.abs().amax(1).view(-1, group).amax(1))
        moving = ~now.certified & ~doubtful & ~broken & (self.since[remaining] <= self.patience)
        names = torch.nonzero(moving)[:, 0]
        if len(names):
            rows = rows_of(names, group)
            moved, step, scores_of_step = (
                now.select(names, group),
                iteration.step[rows],
                iteration.scores_of_step[rows],
            )
            length = search_line(
                self.space,
                iteration.objective.select(names),
                moved,
                step,
                scores_of_step,
                self._wanted(iteration)[names],
            )
            spread = length.repeat_interleave(group).to(self.space.dtype)[:, None]
            now.coef[rows] = moved.coef.addcmul_(spread, step)
            now.scores[rows] = moved.scores.addcmul_(spread, scores_of_step)
            now.steps[names] += 1
            self.summed[remaining[names]] = True
        worse = now.value > self.lowest[remaining] * (1 + PROGRESS)
        stuck = torch.nonzero(~(moving | doubtful | now.certified) & worse)[:, 0]
        if len(stuck):
            self._return_to_safety(iteration, stuck)
        self.state.put(remaining, group, now)
        return remaining[moving | doubtful]

    def _return_to_safety(self, iteration: _Iteration, groups: Tensor) -> None:
        """Put groups of a iteration back to where they were lowest; they take no step from there this time."""
        now, rows = iteration.state, rows_of(groups, self.group)
        now.coef[rows] = self.safe[rows_of(iteration.remaining[groups], self.group)]
        now.scores[rows] = self.space.decision_function(now.coef[rows])
        now.gap[groups], now.value[groups] = (
            self.safe_gap[iteration.remaining[groups]],
            self.lowest[iteration.remaining[groups]],
        )
        now.certified[groups] = False
        iteration.step[rows], iteration.scores_of_step[rows] = 0.0, 0.0
        iteration.measure[groups] = torch.inf


def _first_budget(space: Space, objective: Objective) -> int:
    """Products that conjugate gradients are given first: about what their theory expects of these eigenvalues."""
    expected = 0.5 * math.log(2 / FALL) * math.sqrt(1 + space.largest * objective.largest_curvature())
    return min(max(round(expected), FEWEST_PRODUCTS), MAX_PRODUCTS)
