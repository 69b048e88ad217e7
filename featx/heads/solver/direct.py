"""Exact Newton steps of the squared hinge in Gram form, one Cholesky factor per problem.

Only images short of their margin, the active set I, bend the squared hinge. With D = 1 / (2 costs) the step leads to
the coefficients beta with (K_II + D_I) beta_I = signs_I and 0 elsewhere (Chapelle, Training a support vector machine
in the primal, Neural Computation 19, 2007). Where I is small that is one small system. Where almost all images are
active, the inverse G of K + D over the training images of a fold serves all its classes, and each class solves for
its few inactive images instead: their coefficients are forced to 0 by multipliers. What lies between is left to
conjugate gradients until these get tired.

Systems are solved for the change of beta, not for beta: what rounding spoils in one step the next one mends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featx.device import upload
from featx.heads.solver.blas import add_squares, complete, multiply
from featx.heads.solver.objectives import SquaredHinge
from featx.heads.solver.products import KeptProducts
from featx.heads.solver.spaces import Gram, Primal
from featx.heads.solver.state import State, regular

# Arithmetic, measured against a matrix product of the same precision: factoring runs at half its rate, and picking
# m^2 values out of the matrix costs as much as 120 m^2 operations of a product.
_FACTOR = 2.2 / 3
_PICK = 120.0
_CALL = 1e7
_NEW = 0.2  # share of a problem's products that is made anew where others of its class are kept
_OVERHEAD = 1e6
_INVERSE = 4.0 / 3  # 2 n^3 operations at half the rate, for an inverse that serves about three steps
_VALUES_AT_ONCE = 1 << 24  # on a GPU small systems are solved in batches of about this many values


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
        n, points = self._space.blocks.n, state.points
        residual = objective.residual(state.scores)
        product = 2.0 * n * n + _OVERHEAD
        family, residual = self._family[names[open_]], residual[open_]
        # Float64 is for problems that conjugate gradients have failed on.
        allowed = budget[open_] * (product if points.dtype == torch.float32 else torch.inf)
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
            return open_[:0], points[:0]
        points, active, curvature = points[open_[solved]], active[solved], curvature[solved]
        coefficients = points[:, :n]
        leaving = coefficients * ~active
        right = torch.where(active, -(residual[solved] + coefficients) / curvature, 0.0)
        if bool((leaving != 0).any()):
            right += multiply(leaving, self._space.products) * active
        sides = [right] if self._space.loose is None else [right, active * self._space.loose]
        found = torch.zeros(len(points), n, len(sides), dtype=points.dtype, device=points.device)
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
        steps = self._with_loose(found, points, leaving)
        sound = torch.isfinite(steps).all(1)
        return open_[solved[sound]], steps[sound]

    def _with_loose(self, found: Tensor, points: Tensor, leaving: Tensor) -> Tensor:
        """Join the two solutions so that the loose coordinate v.beta (or, unpenalised, 0 = v.beta) holds as well."""
        loose = self._space.loose
        if loose is None:
            return found[:, :, 0] - leaving
        precise = loose.double()
        n = len(loose)
        staying = (points[:, :n] - leaving + found[:, :, 0]).double() @ precise
        penalty = self._space.loose_penalty
        along = (staying - penalty * points[:, -1].double()) / (penalty + found[:, :, 1].double() @ precise)
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
        looser = torch.where(active, 1 / (1 / curvature - 1 / largest), 0.0)
        first = torch.einsum("pnr,nm->pmr", right, inverse)
        multipliers = solve_subsystems(inverse, changed, looser, -first)
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


class PrimalExactSteps:
    """Exact steps on the weights: (1 + Z_I^T D Z_I) step = -gradient, I the images short of their margin.

    Few of many images are, once C is large; what all of them say, the preconditioner of conjugate gradients, is then
    a bad guide. Where they are fewer than the values, the system is one of |I| unknowns (Woodbury):
    step = -gradient + Z_I^T (Z_I Z_I^T + 1 / D)^-1 Z_I gradient.
    """

    def __init__(self, space: Primal, values: Tensor, family: Tensor, products: KeptProducts) -> None:
        """Args:

        values: (n, D), the centred features of the space.
        family: (P,), which class each problem is of: their active sets are alike.
        products: of the values; what is in it stays for other steps and values of C.
        """
        self._space = space
        self._values = values
        self._family, self._products = family, products
        # The small system is for weights that are all penalised.
        self._may_be_small = space.loose is None
        self._along = (values @ space.constant[: values.shape[1]].to(values.dtype)).double()
        self._square = float(space.constant.square().sum())

    def steps(
        self,
        objective: SquaredHinge,
        state: State,
        open_: Tensor,
        names: Tensor,
        budget: Tensor,
        gradient: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `ExactSteps.steps`."""
        n, d = self._values.shape
        part = objective.select(open_)
        curvature = part.curvature(state.scores[open_])
        sizes = (curvature > 0).sum(1).double()
        cost = _large_cost(sizes, d)
        if self._may_be_small:
            cost = torch.minimum(cost, _small_cost(sizes, d, self._new(self._family[names[open_]])))
        cost += _PICK * sizes * d + _CALL
        solved = torch.nonzero(cost <= budget[open_] * (4.0 * n * d + _OVERHEAD))[:, 0]
        if not len(solved):
            return open_[:0], state.points[:0]
        if gradient is None:
            residual = part.residual(state.scores[open_])
            gradient = regular(self._space, state.points[open_]) + self._space.adjoint(residual)
        families = self._family[names[open_[solved]]].tolist()
        problems = zip(families, curvature[solved], gradient[solved], strict=True)
        steps = torch.stack([self._solve(*problem) for problem in problems])
        sound = torch.isfinite(steps).all(1)
        return open_[solved[sound]], steps[sound]

    def _new(self, families: Tensor) -> Tensor:
        """Which share of the products of a small system will have to be made."""
        return torch.tensor([_NEW if self._products.holds(name) else 1.0 for name in families.tolist()])

    def _solve(self, family: int, curvature: Tensor, gradient: Tensor) -> Tensor:
        rows = torch.nonzero(curvature > 0)[:, 0]
        values, d = self._values.index_select(0, rows), self._values.shape[1]
        size, new = torch.tensor(float(len(rows))), self._new(torch.tensor([family]))[0]
        if self._may_be_small and _small_cost(size, d, new) < _large_cost(size, d):
            return self._solve_small(family, rows, values, curvature[rows], gradient)
        weights = curvature[rows]
        values *= weights.sqrt()[:, None]
        matrix = torch.zeros(len(gradient), len(gradient), dtype=gradient.dtype, device=gradient.device)
        moment = torch.zeros(d, d, dtype=gradient.dtype, device=gradient.device)
        add_squares(moment, values.T)
        complete(moment)
        matrix[:d, :d] = moment
        # Z = centred features + constant: the mixed terms, and the constant's own.
        constant = self._space.constant
        mixed = torch.zeros_like(constant)
        mixed[:d] = (weights.sqrt() @ values).double()
        mixed += 0.5 * weights.sum(dtype=torch.float64) * constant
        matrix += (torch.outer(mixed, constant) + torch.outer(constant, mixed)).to(matrix.dtype)
        self._space.add_penalty(matrix)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            return torch.full_like(gradient, torch.nan)
        return torch.cholesky_solve(-gradient[:, None], factor)[:, 0]

    def _solve_small(self, family: int, rows: Tensor, values: Tensor, curvature: Tensor, gradient: Tensor) -> Tensor:
        """With |I| unknowns. The products of centred rows are of the features' type, all that follows of float64."""
        d, constant = values.shape[1], self._space.constant
        along = self._along[rows]
        matrix = self._products.of(family, rows).double().add_(along[:, None]).add_(along + self._square)
        matrix.diagonal().add_(1 / curvature.double())
        precise = gradient.double()
        image = (values @ gradient[:d]).double() + precise @ constant
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            return torch.full_like(gradient, torch.nan)
        duals = torch.cholesky_solve(image[:, None], factor)[:, 0]
        back = duals.sum() * constant
        back[:d] += (duals.to(values.dtype) @ values).double()
        return (back - precise).to(gradient.dtype)


def _large_cost(sizes: Tensor, d: int) -> Tensor:
    """Of the (d, d) system: a symmetric product takes half of 2 size d^2 operations."""
    return sizes * d**2 + _FACTOR * float(d) ** 3


def _small_cost(sizes: Tensor, d: int, new: Tensor) -> Tensor:
    """Of that of the images, of whose products the share `new` is to be made; its factor is of float64."""
    return new.to(sizes.device) * sizes**2 * d + 2 * _FACTOR * sizes**3


def _cost(size: Tensor) -> Tensor:
    size = size.double()
    return _FACTOR * size**3 + _PICK * size**2 + _CALL


def solve_subsystems(
    matrix: Tensor, chosen: Tensor, diagonal: Tensor, right: Tensor, *, one_by_one: bool | None = None
) -> Tensor:
    """For every p: (matrix + diag(diagonal[p])) restricted to the chosen rows and columns, solved.

    Args:
        matrix: (n, n), symmetric; the restricted systems are positive definite.
        chosen: (P, n) bool.
        diagonal: (P, n).
        right: (P, n, R) right-hand sides.
        one_by_one: instead of in batches; by default on a CPU.

    Returns:
        (P, n, R), 0 where not chosen; not finite where a system is not positive definite in this arithmetic.
    """
    found = torch.zeros_like(right)
    sizes = chosen.sum(1).tolist()
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    if matrix.device.type == "cpu" if one_by_one is None else one_by_one:
        _solve_one_by_one(matrix, chosen, diagonal, right, order, found)
        return found
    while order:
        largest = max(sizes[order[-1]], 1)
        count = max(1, _VALUES_AT_ONCE // largest**2)
        batch, order = order[-count:], order[:-count]
        _solve_batch(matrix, chosen, diagonal, right, batch, [sizes[problem] for problem in batch], found)
    return found


def _solve_one_by_one(
    matrix: Tensor, chosen: Tensor, diagonal: Tensor, right: Tensor, order: list[int], found: Tensor
) -> None:
    largest = int(chosen[order[-1]].sum()) if order else 0
    # Fresh memory of this size comes from the system page by page and costs more than filling it: it is kept.
    strips, squares = matrix.new_empty(largest * len(matrix)), matrix.new_empty(largest**2)
    for problem in order:
        rows = torch.nonzero(chosen[problem])[:, 0]
        size = len(rows)
        strip = torch.index_select(matrix, 0, rows, out=strips[: size * len(matrix)].view(size, len(matrix)))
        system = torch.index_select(strip, 1, rows, out=squares[: size**2].view(size, size))
        system.diagonal().add_(diagonal[problem, rows])
        factor, failed = torch.linalg.cholesky_ex(system)
        solution = torch.cholesky_solve(right[problem, rows], factor)
        found[problem, rows] = solution if int(failed) == 0 else torch.nan


def _solve_batch(
    matrix: Tensor,
    chosen: Tensor,
    diagonal: Tensor,
    right: Tensor,
    batch: list[int],
    sizes: list[int],
    found: Tensor,
) -> None:
    """Systems of `sizes` unknowns, ascending, filled up with unknowns of their own that are 0.

    Without a loop or a look at a value: on a GPU each costs as much as a small system.
    """
    names, counts = (upload(torch.tensor(numbers), matrix.device) for numbers in (batch, sizes))
    largest = max(sizes[-1], 1)
    # Those that are chosen, ascending; behind them others, each once, so that their zeros hurt nobody below.
    index = torch.argsort(chosen[names].to(torch.uint8), dim=1, descending=True, stable=True)[:, :largest]
    real = torch.arange(largest, device=matrix.device) < counts[:, None]
    system = matrix[index[:, :, None], index[:, None, :]]
    if sizes[0] < largest:
        system *= real[:, :, None] & real[:, None, :]
    system.diagonal(dim1=1, dim2=2).add_(torch.where(real, diagonal[names[:, None], index], 1.0))
    sides = right[names[:, None], index] * real[:, :, None]
    factor, failed = torch.linalg.cholesky_ex(system)
    solution = torch.cholesky_solve(sides, factor)
    solution = torch.where((failed > 0)[:, None, None], torch.nan, solution)
    found[names[:, None], index] = torch.where(real[:, :, None], solution, 0.0)
