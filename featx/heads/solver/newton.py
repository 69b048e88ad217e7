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

from featx.heads.solver.conjugate import FALL, conjugate_gradients
from featx.heads.solver.direct import ExactSteps, PrimalExactSteps
from featx.heads.solver.objectives import Objective, SquaredHinge
from featx.heads.solver.spaces import Space
from featx.heads.solver.state import State, penalty, per_group, regular, regular_dot, rows_of

MAX_STEPS = 200
PATIENCE = 6  # steps without progress; then the arithmetic, not the problem, is at its end
PATIENCE_EXACT = 60  # the same in float64, where the problem may be at fault
ROUGH = 0.3  # share of the gap left after a step from which on the next steps are made finer
FINEST = 1e-6
PROGRESS = 1e-5  # of f in a step, if its gap has not fallen by half
LOST = 0.5  # of f above its lowest value: no step that was searched for can lead there
FEWEST_PRODUCTS = 4
MAX_PRODUCTS = 400
SEARCH_STEPS = 12
SEARCH_TOLERANCE = 0.02


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
        summed: the scores of `state` are sums of others', not products of its points.
    """
    _Newton(space, objective, state, tolerance, exact, summed=summed).run()


@dataclass
class _Turn:
    """One step of the groups that are still under way: what they are, and where they want to go."""

    live: Tensor
    objective: Objective
    state: State
    step: Tensor
    image_of_step: Tensor
    measure: Tensor
    tired: Tensor


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
        self.by_dual = _dual_is_at_hand(space, objective)
        self.at_zero = objective.value(torch.zeros_like(state.scores))
        self.patience = PATIENCE if space.dtype == torch.float32 else PATIENCE_EXACT
        self.budget = torch.full_like(state.steps, _first_budget(space, objective))
        self.fall = torch.full_like(state.gap, FALL)
        self.best, self.lowest = torch.full_like(state.gap, torch.inf), torch.full_like(state.gap, torch.inf)
        self.since = torch.zeros_like(state.steps)
        # The lowest points so far: rounding can make products indefinite, and then a step can lead anywhere.
        self.safe = state.points.clone()
        self.safe_gap = torch.full_like(state.gap, torch.inf)
        # Whether the scores are sums of steps, not products of points.
        self.summed = torch.full_like(state.certified, summed)
        state.certified[:] = False

    def run(self) -> None:
        live = torch.arange(len(self.state.gap), device=self.state.gap.device)
        for _ in range(MAX_STEPS):
            live = self._turn(live)
            if not len(live):
                return

    def _turn(self, live: Tensor) -> Tensor:
        """A step of the live groups; those that go on."""
        now = self.state.select(live, self.group)
        turn = _Turn(
            live, self.objective.select(live), now, torch.zeros_like(now.points), torch.zeros_like(now.scores),
            torch.full_like(now.gap, torch.inf), torch.zeros_like(now.certified),
        )  # fmt: skip
        now.gap = torch.full_like(now.gap, torch.inf)
        open_ = torch.arange(len(live), device=live.device)
        if self.by_dual and isinstance(turn.objective, SquaredHinge):
            open_ = self._prove_by_dual(turn, turn.objective)
            open_ = self._solve_exactly(turn, open_)
        if len(open_):
            self._prove_by_gradient(turn, open_)
        now.certified = (now.gap <= self._wanted(turn)) | (now.gap == 0)
        self.budget[live[turn.tired]] = (self.budget[live[turn.tired]] * 2).clamp_max(MAX_PRODUCTS)
        return self._move(turn)

    def _wanted(self, turn: _Turn) -> Tensor:
        """The gap at which a group is done."""
        value = turn.state.value
        return self.tolerance * torch.minimum(value, (self.at_zero[turn.live] - value).clamp_min(0))

    def _prove_by_dual(self, turn: _Turn, objective: SquaredHinge) -> Tensor:
        """Values and gaps without a product; which groups are not proven by them."""
        now = turn.state
        now.value = penalty(self.space, now.points, now.scores).double() + objective.value(now.scores)
        wanted = self._wanted(turn)
        now.gap, turn.measure = _gap_by_dual(self.space, objective, now, wanted)
        return torch.nonzero(now.gap > wanted)[:, 0]

    def _solve_exactly(self, turn: _Turn, open_: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Exact steps for the open groups that are worth it; which are left.

        Args:
            gradient: of the open groups, where it is known.
        """
        if self.exact is None or not len(open_) or not isinstance(turn.objective, SquaredHinge):
            return open_
        budget = self.budget[turn.live]
        solved, steps = self.exact.steps(turn.objective, turn.state, open_, turn.live, budget, gradient)
        turn.step[solved], turn.image_of_step[solved] = steps, self.space.image(steps)
        return open_[~torch.isin(open_, solved)]

    def _prove_by_gradient(self, turn: _Turn, open_: Tensor) -> None:
        """Gaps of the open groups, and steps for those that are not proven by them."""
        space, group = self.space, self.group
        part, asked = turn.state.select(open_, group), turn.objective.select(open_)
        if space.loose is not None and (space.loose_penalty == 0 or space.dtype == torch.float32):
            _polish(space, asked, part)
        gradient, image = _proof_by_gradient(space, asked, part)
        turn.state.put(open_, group, part)
        turn.measure[open_] = torch.minimum(turn.measure[open_], part.gap)
        further = torch.nonzero(~(part.gap <= self._wanted(turn)[open_]))[:, 0]
        if not self.by_dual:
            left = self._solve_exactly(turn, open_[further], gradient[further] if group == 1 else None)
            further = further[torch.isin(open_[further], left)]
        if len(further):
            rows, names = rows_of(further, group), open_[further]
            found = conjugate_gradients(
                space, asked.select(further), part.select(further, group), gradient[rows], image[rows],
                self.budget[turn.live[names]], self.fall[turn.live[names]],
            )  # fmt: skip
            rows = rows_of(names, group)
            turn.step[rows], turn.image_of_step[rows], turn.tired[names] = found

    def _move(self, turn: _Turn) -> Tensor:
        """Take the steps of the groups that are not done; which groups go on."""
        live, now, group = turn.live, turn.state, self.group
        # What is proven of scores that were summed up step by step must be proven of the points themselves.
        doubtful = now.certified & self.summed[live]
        if bool(doubtful.any()):
            rows = rows_of(torch.nonzero(doubtful)[:, 0], group)
            now.scores[rows] = self.space.image(now.points[rows])
            self.summed[live[doubtful]] = False
            now.certified &= ~doubtful
        lost = ~(now.value <= self.lowest[live] + LOST * self.lowest[live].abs())
        if bool(lost.any()):
            self._return_to_safety(turn, torch.nonzero(lost)[:, 0])
        lowest = torch.nonzero((now.value <= self.lowest[live]) & ~doubtful)[:, 0]
        self.safe[rows_of(live[lowest], group)] = now.points[rows_of(lowest, group)]
        self.safe_gap[live[lowest]] = now.gap[lowest]
        progress = (turn.measure < 0.5 * self.best[live]) | (now.value < self.lowest[live] * (1 - PROGRESS))
        self.since[live] = torch.where(progress, 0, self.since[live] + 1)
        # What is left of the gradient in a few bad directions can be most of the gap: then steps are too rough.
        rough = turn.measure > ROUGH * self.best[live]
        self.fall[live] = torch.where(rough, (0.1 * self.fall[live]).clamp_min(FINEST), self.fall[live])
        self.best[live] = torch.minimum(self.best[live], turn.measure)
        self.lowest[live] = torch.minimum(self.lowest[live], now.value)
        broken = ~torch.isfinite(turn.step.abs().amax(1).view(-1, group).amax(1))
        moving = ~now.certified & ~doubtful & ~broken & (self.since[live] <= self.patience)
        names = torch.nonzero(moving)[:, 0]
        if len(names):
            rows = rows_of(names, group)
            moved, step, image = now.select(names, group), turn.step[rows], turn.image_of_step[rows]
            length = _search(self.space, turn.objective.select(names), moved, step, image, self._wanted(turn)[names])
            spread = length.repeat_interleave(group).to(self.space.dtype)[:, None]
            now.points[rows] = moved.points.addcmul_(spread, step)
            now.scores[rows] = moved.scores.addcmul_(spread, image)
            now.steps[names] += 1
            self.summed[live[names]] = True
        worse = now.value > self.lowest[live] * (1 + PROGRESS)
        stuck = torch.nonzero(~(moving | doubtful | now.certified) & worse)[:, 0]
        if len(stuck):
            self._return_to_safety(turn, stuck)
        self.state.put(live, group, now)
        return live[moving | doubtful]

    def _return_to_safety(self, turn: _Turn, groups: Tensor) -> None:
        """Put groups of a turn back to where they were lowest; they take no step from there this time."""
        now, rows = turn.state, rows_of(groups, self.group)
        now.points[rows] = self.safe[rows_of(turn.live[groups], self.group)]
        now.scores[rows] = self.space.image(now.points[rows])
        now.gap[groups], now.value[groups] = self.safe_gap[turn.live[groups]], self.lowest[turn.live[groups]]
        now.certified[groups] = False
        turn.step[rows], turn.image_of_step[rows] = 0.0, 0.0
        turn.measure[groups] = torch.inf


def _first_budget(space: Space, objective: Objective) -> int:
    """Products that conjugate gradients are given first: about what their theory expects of these eigenvalues."""
    expected = 0.5 * math.log(2 / FALL) * math.sqrt(1 + space.largest * objective.largest_curvature())
    return min(max(round(expected), FEWEST_PRODUCTS), MAX_PRODUCTS)


def _proof_by_gradient(space: Space, objective: Objective, state: State) -> tuple[Tensor, Tensor]:
    """Store values and gaps of a state, and return its gradient and, where the metric needs it, the image of that."""
    gradient = regular(space, state.points) + space.adjoint(objective.residual(state.scores))
    image = space.image(gradient) if space.metric_needs_images else gradient
    # A negative one comes from products that rounding has made indefinite: its size is what is not known.
    state.gap = per_group(penalty(space, gradient, image).abs(), objective.group)
    weight = per_group(penalty(space, state.points, state.scores), objective.group)
    state.value = weight + objective.value(state.scores)
    return gradient, image


def _dual_is_at_hand(space: Space, objective: Objective) -> bool:
    """Whether points are dual variables: squared hinges in Gram form, no unpenalised coordinate."""
    unpenalised = space.loose is not None and space.loose_penalty == 0
    return isinstance(objective, SquaredHinge) and space.metric_needs_images and not unpenalised


def _gap_by_dual(space: Space, objective: SquaredHinge, state: State, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The duality gap of squared hinges at the points themselves; infinite where this proves nothing.

    At large C the residual magnifies the rounding of the scores by 2 C; the coefficients do not, and no product
    is needed. With dual variables a = max(signs beta, 0) of the coefficients beta the gap is
    1/2 |w(beta) - w(signs a)|^2 and the objective's `dual_terms`.

    Returns:
        The gap (G,), infinite where it is too large to be of use, and its sum alone, which measures progress but
        proves nothing.
    """
    unknown = torch.full_like(state.value, torch.inf)
    points = state.points[:, : state.scores.shape[1]]
    duals = (objective.signs * points).clamp_min_(0) * (objective.costs > 0)
    measure = objective.dual_terms(state.scores, duals)
    hopeful = torch.nonzero(measure <= wanted)[:, 0]
    if len(hopeful):
        unknown[hopeful] = measure[hopeful]
        # Coefficients of the wrong sign, or of images held out, are no dual variables: their weights count.
        dual_points = objective.signs[hopeful] * duals[hopeful]
        if space.loose is not None:
            last = (dual_points.double() @ space.loose.double()).to(space.dtype)
            dual_points = torch.cat([dual_points, last[:, None]], 1)
        apart = state.points[hopeful] - dual_points
        if bool((apart[:, : points.shape[1]] != 0).any()):
            unknown[hopeful] += 0.5 * space.dot(apart, apart, space.image(apart)).abs()
        else:
            unknown[hopeful] += 0.5 * apart[:, -1].double().square()
    return unknown, measure


def _search(
    space: Space, objective: Objective, state: State, step: Tensor, image_of_step: Tensor, wanted: Tensor
) -> Tensor:
    """How far along its step each group is lowest, (G,) float64; Newton in one variable, kept inside a bracket.

    Where the whole step changes f by much less than the gap that is wanted, rounding is all there is to see: the step
    is taken as it is. It may still put in order what f does not feel, coefficients along directions without images.
    """
    group = objective.group
    slope = per_group(regular_dot(space, step, state.points, state.scores), group)
    bend = 2 * per_group(penalty(space, step, image_of_step), group).clamp_min(0)
    length = torch.ones_like(slope)
    low, high = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    for _ in range(SEARCH_STEPS):
        rate = length.repeat_interleave(group).to(space.dtype)[:, None]
        scores = torch.addcmul(state.scores, rate, image_of_step)
        pull = (objective.residual(scores) * image_of_step).sum(1)
        curved = objective.curve(objective.curvature(scores), image_of_step)
        here = slope + length * bend + per_group(pull, group)
        second = bend + per_group((curved * image_of_step).sum(1), group)
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


def _polish(space: Space, objective: Objective, state: State) -> None:
    """Bring the loose coordinate to its optimum for the others as they are, in place."""
    group, loose, weight = objective.group, space.loose, space.loose_penalty
    assert loose is not None
    for _ in range(SEARCH_STEPS):
        last = state.points[:, -1].double().view(-1, group)
        pull = (objective.residual(state.scores) @ loose).double().view(-1, group) + weight * last
        matrix = objective.loose_curvature(objective.curvature(state.scores), loose)
        scale = matrix.diagonal(dim1=1, dim2=2).sum(1)
        # The same constant added to all intercepts of a softmax changes nothing; this picks the change of mean zero.
        if group > 1:
            matrix = matrix + (scale / group**2)[:, None, None]
        matrix.diagonal(dim1=1, dim2=2).add_(weight + 1e-12 * scale[:, None] + 1e-300)
        change = torch.linalg.solve(matrix, -pull[:, :, None])[:, :, 0]
        change = torch.where(scale[:, None] + weight > 0, change.clamp(-1.0, 1.0), 0.0)
        rows = change.flatten().to(state.points.dtype)
        state.points[:, -1] += rows
        state.scores.addr_(rows, loose)
        if bool((change.abs() <= 1e-6 * (1 + last.abs())).all()):
            return
