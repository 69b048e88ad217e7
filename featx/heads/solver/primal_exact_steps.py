"""Exact Newton steps of the squared hinge on the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from featx.heads.solver.exact_steps import CALL_COST, FACTOR_COST, PICK_COST, PRODUCT_OVERHEAD
from featx.heads.solver.linear_algebra.matmul import add_squares, complete
from featx.heads.solver.linear_algebra.primal import Primal
from featx.heads.solver.linear_algebra.products import ProductCache
from featx.heads.solver.objectives import SquaredHinge
from featx.heads.solver.state import State, regular

_NEW = 0.2  # share of a problem's products that is computed again where others of its class are kept


class PrimalExactSteps:
    """Exact steps on the weights: (1 + Z_I^T D Z_I) step = -gradient, I the images short of their margin.

    Few of many images are, once C is large; what all of them say, the preconditioner of conjugate gradients, is then
    a bad guide. Where they are fewer than the values, the system is one of |I| unknowns (Woodbury):
    step = -gradient + Z_I^T (Z_I Z_I^T + 1 / D)^-1 Z_I gradient.
    """

    def __init__(self, space: Primal, values: Tensor, family: Tensor, products: ProductCache) -> None:
        """Args:

        values: (n, D), the centred features of the space.
        family: (P,), which class each problem is of: their active sets are alike.
        products: of the values; what is in it stays for other steps and values of C.
        """
        self._space = space
        self._values = values
        self._family, self._products = family, products
        # The small system is for weights that are all penalised.
        self._may_be_small = space.extra_column is None
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
        cost += PICK_COST * sizes * d + CALL_COST
        solved = torch.nonzero(cost <= budget[open_] * (4.0 * n * d + PRODUCT_OVERHEAD))[:, 0]
        if not len(solved):
            return open_[:0], state.coef[:0]
        if gradient is None:
            residual = part.residual(state.scores[open_])
            gradient = regular(self._space, state.coef[open_]) + self._space.adjoint(residual)
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
        scores_of_gradient = (values @ gradient[:d]).double() + precise @ constant
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            return torch.full_like(gradient, torch.nan)
        duals = torch.cholesky_solve(scores_of_gradient[:, None], factor)[:, 0]
        back = duals.sum() * constant
        back[:d] += (duals.to(values.dtype) @ values).double()
        return (back - precise).to(gradient.dtype)


def _large_cost(sizes: Tensor, d: int) -> Tensor:
    """Of the (d, d) system: a symmetric product takes half of 2 size d^2 operations."""
    return sizes * d**2 + FACTOR_COST * float(d) ** 3


def _small_cost(sizes: Tensor, d: int, new: Tensor) -> Tensor:
    """Of that of the images, of whose products the share `new` is to be made; its factor is of float64."""
    return new.to(sizes.device) * sizes**2 * d + 2 * FACTOR_COST * sizes**3
