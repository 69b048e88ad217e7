"""Exact Newton steps of the squared hinge in Gram form, one Cholesky factor per problem.

Only images short of their margin, the active set I, contribute to the Hessian of the squared hinge. With
D = 1 / (2 costs) the step leads to the coefficients beta with (K_II + D_I) beta_I = signs_I and 0 elsewhere
(Chapelle, Training a support vector machine in the primal, Neural Computation 19, 2007). Where I is small that is one
small system. Where almost all images are active, the inverse G of K + D over the training images of a fold serves all
its classes, and each class solves for its few inactive images instead: their coefficients are forced to 0 by
multipliers. What lies between is left to conjugate gradients until these run out of their budget.

Systems are solved for the change of beta, not for beta: what rounding spoils in one step the next one corrects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featx.heads.solver.linear_algebra.gram import Gram
from featx.heads.solver.linear_algebra.matmul import multiply
from featx.heads.solver.linear_algebra.subsystems import solve_subsystems
from featx.heads.solver.objectives import SquaredHinge
from featx.heads.solver.state import State

# Arithmetic, measured against a matrix product of the same precision: factoring runs at half its rate, and picking
# m^2 values out of the matrix costs as much as 120 m^2 operations of a product.
FACTOR_COST = 2.2 / 3
PICK_COST = 120.0
CALL_COST = 1e7
PRODUCT_OVERHEAD = 1e6
_INVERSE = 4.0 / 3  # 2 n^3 operations at half the rate, for an inverse that serves about three steps


class ExactSteps:
    """Exact steps for problems that fall into families (folds) with the same images to train on.

    Args:
        family: (P,) which family each problem belongs to, 0..F-1.
        costs: (F, n), the largest cost of each image in the family; 0 where it is held out.
        cache_bytes: memory for inverses that are kept between steps.
    """

    def __init__(self, space: Gram, family: Tensor, costs: Tensor, cache_bytes: int) -> None:
        self._space = space
        self._family = family
        self._costs = costs
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        n = space.blocks.n
        self._keep = max(1, cache_bytes // (8 * n * n))

    def steps(
        self,
        objective: SquaredHinge,
        state: State,
        open_: Tensor,
        names: Tensor,
        budget: Tensor,
        gradient: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Steps for those problems that are cheaper to solve exactly than by their `budget` of products.

        Args:
            state: of the P problems at hand.
            open_: which of them want a step.
            names: (P,) their places among all problems.
            budget: (P,) products.
            gradient: of those that want a step, where it is known; in this form it is not needed.

        Returns:
            Which of the P problems are solved, and their steps.
        """
        n, coef = self._space.blocks.n, state.coef
        residual = objective.residual(state.scores)
        product = 2.0 * n * n + PRODUCT_OVERHEAD
        family, residual = self._family[names[open_]], residual[open_]
        # Float64 is for problems that conjugate gradients have failed on.
        allowed = budget[open_] * (product if coef.dtype == torch.float32 else torch.inf)
        active = residual != 0
        curvature = 2 * objective.select(open_).costs * active
        small = _cost(active.sum(1))
        large = torch.full_like(small, torch.inf)
        for name in sorted(set(family.tolist())):
            mine = torch.nonzero(family == name)[:, 0]
            trained = self._costs[name] > 0
            changed = (curvature[mine] < 2 * self._costs[name]) & trained
            cost = 2 * (_cost(changed.sum(1)) + 2 * product)  # in float64
            limit = torch.minimum(small[mine], allowed[mine])
            better = cost < limit
            making = 0.0 if name in self._kept else _INVERSE * float(trained.sum()) ** 3
            if float((limit - cost)[better].sum()) > making:
                large[mine[better]] = cost[better]
        solved = torch.nonzero(torch.minimum(small, large) <= allowed)[:, 0]
        if not len(solved):
            return open_[:0], coef[:0]
        coef, active, curvature = coef[open_[solved]], active[solved], curvature[solved]
        coefficients = coef[:, :n]
        leaving = coefficients * ~active
        right = torch.where(active, -(residual[solved] + coefficients) / curvature, 0.0)
        if bool((leaving != 0).any()):
            right += multiply(leaving, self._space.products) * active
        sides = [right] if self._space.extra_column is None else [right, active * self._space.extra_column]
        found = torch.zeros(len(coef), n, len(sides), dtype=coef.dtype, device=coef.device)
        right_sides = torch.stack(sides, 2)
        by_complement = large[solved] < small[solved]
        direct = torch.nonzero(~by_complement)[:, 0]
        if len(direct):
            inverse_curvature = torch.where(active[direct], 1 / curvature[direct], 0.0)
            found[direct] = solve_subsystems(
                self._space.products, active[direct], inverse_curvature, right_sides[direct]
            )
        for name in sorted(set(family[solved][by_complement].tolist())):
            mine = torch.nonzero(by_complement & (family[solved] == name))[:, 0]
            found[mine] = self._on_complement(name, active[mine], curvature[mine], right_sides[mine])
        steps = self._with_extra(found, coef, leaving)
        sound = torch.isfinite(steps).all(1)
        return open_[solved[sound]], steps[sound]

    def _with_extra(self, found: Tensor, coef: Tensor, leaving: Tensor) -> Tensor:
        """Join the two solutions so that the extra coordinate v.beta (or, unpenalised, 0 = v.beta) holds as well."""
        extra_column = self._space.extra_column
        if extra_column is None:
            return found[:, :, 0] - leaving
        precise = extra_column.double()
        n = len(extra_column)
        staying = (coef[:, :n] - leaving + found[:, :, 0]).double() @ precise
        penalty = self._space.extra_penalty
        along = (staying - penalty * coef[:, -1].double()) / (penalty + found[:, :, 1].double() @ precise)
        step = found[:, :, 0] - along.to(found.dtype)[:, None] * found[:, :, 1] - leaving
        return torch.cat([step, along.to(found.dtype)[:, None]], 1)

    def _on_complement(self, name: int, active: Tensor, curvature: Tensor, right: Tensor) -> Tensor:
        """Solve (K'_II + 1 / curvature_I) x_I = right_I, (P, n, R), for problems of one family.

        By the inverse over all its training images, and multipliers for those that are not active.
        """
        inverse, trained = self._inverse(name)
        right, active, curvature = right[:, trained].double(), active[:, trained], curvature[:, trained].double()
        largest = 2 * self._costs[name][trained].double()
        changed = curvature < largest
        # A cost that differs from the family's is a finite multiplier, an inactive image an infinite one.
        relaxed = torch.where(active, 1 / (1 / curvature - 1 / largest), 0.0)
        first = torch.einsum("pnr,nm->pmr", right, inverse)
        multipliers = solve_subsystems(inverse, changed, relaxed, -first)
        solution = torch.einsum("pnr,nm->pmr", multipliers, inverse).add_(first).mul_(active[:, :, None])
        found = self._costs.new_zeros(len(right), self._costs.shape[1], right.shape[2])
        found[:, trained] = solution.to(found.dtype)
        return found

    def _inverse(self, name: int) -> tuple[Tensor, Tensor]:
        if name not in self._kept:
            if len(self._kept) >= self._keep:
                self._kept.pop(next(iter(self._kept)))
            space = self._space
            trained = torch.nonzero(self._costs[name] > 0)[:, 0]
            # In float64: the smallest values of its parts are as the square of the condition, 2 C times the largest
            # eigenvalue, and float32 loses them from a condition of 3,000 on.
            matrix = space.products[trained[:, None], trained].double()
            matrix.diagonal().add_(1 / (2 * self._costs[name][trained].double()))
            inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix)[0])
            # LAPACK's columns are made rows: picking rows out of columns would be several times as slow.
            self._kept[name] = inverse.mT.contiguous(), trained
        return self._kept[name]


def _cost(size: Tensor) -> Tensor:
    size = size.double()
    return FACTOR_COST * size**3 + PICK_COST * size**2 + CALL_COST
