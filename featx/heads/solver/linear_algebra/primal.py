"""Coefficients on the D values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.linear_algebra.matmul import add_product, add_squares, complete, multiply
from featx.heads.solver.linear_algebra.space import LEAST_CURVATURE, CurvatureProduct

_CACHED_BYTES, _FEWEST_ROWS = 4 << 20, 64  # of a block of features that two products share


class Primal:
    """Coefficients are weights of the D values and, with an intercept, one coefficient more, (P, D + 1).

    Attributes:
        constant: (width,) float64, what a unit of each coefficient adds to every score beside the centred features'
            part.
    """

    metric_needs_scores = False

    def __init__(
        self, blocks: Blocks, intercept: str, scaling: float, dtype: torch.dtype, *, whole_matrix: bool = True
    ) -> None:
        """Args: as for `Gram`.

        whole_matrix: precondition with all (D, D) products of the features; else, where these do not fit into
            memory, with their squares and the mean direction alone.
        """
        self.blocks = blocks
        self.whole_matrix = whole_matrix
        self.scaling = scaling if intercept == "penalised" else 0.0
        self.dtype = dtype
        self.width = blocks.d + (intercept != "none")
        self.extra_column = torch.ones(blocks.n, dtype=dtype, device=blocks.device) if intercept == "free" else None
        self.extra_penalty = 0.0
        constant = torch.zeros(self.width, dtype=torch.float64, device=blocks.device)
        if self.extra_column is not None:
            constant[-1] = 1.0
        else:
            constant[: blocks.d] = blocks.mean
            constant[blocks.d :] = self.scaling
        self.constant = constant
        self._scatter: Tensor | None = None
        self._factor: Tensor | None = None
        self._curvature = 0.0
        self.largest = 0.0  # preconditioned: what is expensive is not known beforehand

    def decision_function(self, coef: Tensor) -> Tensor:
        scores = torch.empty(len(coef), self.blocks.n, dtype=self.dtype, device=self.blocks.device)
        weights = coef[:, : self.blocks.d]
        for rows, values in self.blocks.rows(self.dtype):
            multiply(weights, values.T, out=scores[:, rows])
        return scores.add_((coef.double() @ self.constant).to(self.dtype)[:, None])

    def adjoint(self, residual: Tensor) -> Tensor:
        gradient = torch.zeros(len(residual), self.width, dtype=self.dtype, device=self.blocks.device)
        for rows, values in self.blocks.rows(self.dtype):
            add_product(gradient[:, : self.blocks.d], residual[:, rows], values)
        total = residual.sum(1, dtype=torch.float64)
        return gradient.add_(torch.outer(total, self.constant).to(self.dtype))

    def hessian_vector_product(self, coef: Tensor, curvature_product: CurvatureProduct) -> tuple[Tensor, Tensor]:
        scores = torch.empty(len(coef), self.blocks.n, dtype=self.dtype, device=self.blocks.device)
        gradient = torch.zeros(len(coef), self.width, dtype=self.dtype, device=self.blocks.device)
        weights, shift = coef[:, : self.blocks.d], (coef.double() @ self.constant).to(self.dtype)[:, None]
        total = torch.zeros(len(coef), dtype=torch.float64, device=self.blocks.device)
        for rows, values in self._small_blocks():
            here = multiply(weights, values.T).add_(shift)
            scores[:, rows] = here
            hessian_scores = curvature_product(rows, here)
            add_product(gradient[:, : self.blocks.d], hessian_scores, values)
            total += hessian_scores.sum(1, dtype=torch.float64)
        return scores, gradient.add_(torch.outer(total, self.constant).to(self.dtype))

    def _small_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows in blocks that stay in a processor's cache between two products."""
        for rows, values in self.blocks.rows(self.dtype):
            step = len(values)
            if values.device.type == "cpu":
                step = max(_FEWEST_ROWS, _CACHED_BYTES // values[:1].nbytes)
            for start in range(0, len(values), step):
                part = values[start : start + step]
                yield slice(rows.start + start, rows.start + start + len(part)), part

    def dot(self, coef: Tensor, others: Tensor, scores_of_others: Tensor) -> Tensor:
        return (coef * others).sum(1).double()

    def prepare(self, curvature: float) -> None:
        if self._scatter is None:
            self._scatter = self._second_moment() if self.whole_matrix else self._squares()
        if 2 / 3 < curvature / max(self._curvature, 1e-300) < 3 / 2:
            return
        self._curvature = curvature
        if self.whole_matrix:
            self._factorise(curvature)

    def _factorise(self, curvature: float) -> None:
        assert self._scatter is not None
        matrix = self._scatter * curvature
        self.add_penalty(matrix)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            # Beyond the digits of this number type: any matrix near it will do, it only guides the search.
            matrix = matrix.double()
            matrix.diagonal().add_(1e-6 * matrix.diagonal().mean().clamp_min(1e-12)).clamp_min_(1e-12)
            factor = torch.linalg.cholesky(matrix).to(self.dtype)
        self._factor = factor

    def add_penalty(self, matrix: Tensor) -> None:
        """Add, in place, the second derivative of 1/2 |w|^2 to that of a loss (width, width)."""
        matrix.diagonal()[: self.width - (self.extra_column is not None)].add_(1.0)
        if self.extra_column is not None:
            matrix[-1, -1].clamp_min_(LEAST_CURVATURE)

    def _second_moment(self) -> Tensor:
        """(width, width): the sum over images of their outer products, intercept feature included."""
        d, n = self.blocks.d, self.blocks.n
        moment = torch.zeros(d, d, dtype=self.dtype, device=self.blocks.device)
        for _, values in self.blocks.rows(self.dtype):
            add_squares(moment, values.T)
        complete(moment)
        whole = torch.outer(self.constant, self.constant).mul_(n).to(self.dtype)
        whole[:d, :d] += moment
        return whole

    def _squares(self) -> Tensor:
        """(width,): the diagonal of `_second_moment`, but for the outer product of the constants."""
        squares = torch.zeros(self.width, dtype=self.dtype, device=self.blocks.device)
        for _, values in self.blocks.rows(self.dtype):
            squares[: self.blocks.d] += values.square().sum(0)
        return squares

    def precondition(self, coef: Tensor) -> Tensor:
        if not self.whole_matrix:
            return self._precondition_by_diagonal(coef)
        assert self._factor is not None
        return torch.cholesky_solve(coef.T, self._factor).T

    def _precondition_by_diagonal(self, coef: Tensor) -> Tensor:
        """The inverse of 1 + curvature (squares + n constant constant^T), the last term by Sherman & Morrison."""
        assert self._scatter is not None
        inverse = self._curvature * self._scatter.double()
        inverse[: self.width - (self.extra_column is not None)] += 1.0
        if self.extra_column is not None:
            inverse[-1] = max(self._curvature * self.blocks.n, LEAST_CURVATURE)
            return (coef / inverse).to(self.dtype)
        inverse.reciprocal_()
        weight = self._curvature * self.blocks.n
        along = inverse * self.constant
        share = weight * (coef.double() @ along) / (1 + weight * (along @ self.constant))
        return (coef * inverse).sub_(torch.outer(share, along)).to(self.dtype)

    def weights(self, coef: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weights = coef[:, : self.blocks.d].double()
        if self.extra_column is not None:
            return weights, coef[:, -1].double() - weights @ self.blocks.mean
        if self.width == self.blocks.d:
            return weights, torch.zeros(len(coef), dtype=torch.float64, device=coef.device)
        return weights, coef[:, -1].double() * self.scaling
