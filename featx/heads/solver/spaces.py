"""Where the weights live: on the D values (`Primal`), or on the n images (`Gram`).

An optimum lies in the span of the images, w = sum_n beta_n x_n (the representer theorem; Schoelkopf, Herbrich &
Smola, COLT 2001). With K = X X^T the scores are K beta and the penalty is 1/2 beta.K beta: for few images with many
values one n x n matrix, made once, serves every class, every C and every fold.

Both offer the same operations to the solver, which does not know in which of them it works. A point is a row of
coefficients; its image is its scores on all images, (P, n). Two traps are taken care of here:

- Features after a ReLU have a mean far from 0, and the products of the mean swallow the digits of float32 that
  tell images apart. Both spaces hold centred features. With a free intercept that changes nothing; with a penalised
  one the mean direction is a coordinate of its own: K = K' + v v^T, where v is the part of [x; s] along (mean, s)
  and K' are the products of the rest. Its coefficient would follow from the others, but as a sum that cancels to a
  few digits.
- What cancels is summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from featx.heads.solver.blas import add_product, add_squares, complete, multiply
from featx.heads.solver.blocks import Blocks

_POWER_STEPS = 6
_EIGENPAIRS, _SPARE, _SUBSPACE_STEPS = 32, 8, 3  # of the Gram form's preconditioner
_CACHED_BYTES, _FEWEST_ROWS = 4 << 20, 64  # of a block of features that two products share
_LEAST = 1e-3  # curvature along a free intercept that the preconditioner believes in; saturated losses have none


Curve = Callable[[slice, Tensor], Tensor]  # some images and their scores (P, b) to (P, b)


class Space(Protocol):
    """Points are (P, width) coefficients.

    Attributes:
        loose: (n,) what a unit of the last coefficient adds to the scores, if that coefficient is a coordinate of its
            own beside the others (a free intercept, the mean direction); None without one.
        loose_penalty: 0 if that coordinate carries no penalty, else 1.
        largest: roughly the largest eigenvalue of the products of the centred features; 0 if not known.
        metric_needs_images: whether `dot` looks at the image it is given.
    """

    width: int
    dtype: torch.dtype
    loose: Tensor | None
    loose_penalty: float
    largest: float
    metric_needs_images: bool

    def image(self, points: Tensor) -> Tensor:
        """The scores of points on all images, (P, n)."""

    def adjoint(self, residual: Tensor) -> Tensor:
        """The gradient of a loss by the point, from its derivative by the scores (P, n) -> (P, width)."""

    def bend(self, points: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
        """The scores of points, and the adjoint of what `curve` makes of them, in one pass over the features."""

    def dot(self, points: Tensor, others: Tensor, image_of_others: Tensor) -> Tensor:
        """Inner products of coordinates, penalised or not, (P,) float64."""

    def prepare(self, curvature: float) -> None:
        """Make `precondition` fit a mean curvature of the losses."""

    def precondition(self, points: Tensor) -> Tensor:
        """Roughly the inverse of the second derivative, times points."""

    def weights(self, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(P, D) and (P,) float64: weights and intercepts for the features as they are, by products in `dtype`."""


class Gram:
    """Points are coefficients of the images and, last, of the mean direction or the free intercept, (P, n + 1).

    Attributes:
        products: (n, n), the K' above.
    """

    metric_needs_images = True

    def __init__(self, blocks: Blocks, intercept: str, scaling: float, dtype: torch.dtype) -> None:
        """Read the features once, in blocks of columns, and build the matrix.

        Args:
            intercept: "penalised", "free" or "none".
            scaling: s, the value of the constant feature behind a penalised intercept.
        """
        self.blocks = blocks
        self.scaling = scaling if intercept == "penalised" else 0.0
        self.dtype = dtype
        self.products, along = _products(blocks, dtype)
        self.loose: Tensor | None = None
        self.loose_penalty = 1.0
        self._square = float(blocks.mean.square().sum()) + self.scaling**2
        if intercept == "free":
            self.loose, self.loose_penalty = torch.ones(blocks.n, dtype=dtype, device=blocks.device), 0.0
        elif self._square > 0:
            self.products.addr_(along.to(dtype), (along / -self._square).to(dtype))
            self.loose = ((along + self._square) / self._square**0.5).to(dtype)
        self.width = blocks.n + (self.loose is not None)
        self._vectors, self._images, self._values = largest_eigenpairs(self.products, min(_EIGENPAIRS, blocks.n // 8))
        self.largest = float(self._values[0]) if len(self._values) else _largest_eigenvalue(self.products)
        self._shrink = torch.zeros_like(self._values)

    def image(self, points: Tensor) -> Tensor:
        scores = multiply(points[:, : self.blocks.n], self.products)
        return scores if self.loose is None else scores.addr_(points[:, -1], self.loose)

    def adjoint(self, residual: Tensor) -> Tensor:
        if self.loose is None:
            return residual
        # In float64: the sum over all images cancels to a small part of its terms.
        last = residual.double() @ self.loose.double()
        return torch.cat([residual, last.to(self.dtype)[:, None]], 1)

    def bend(self, points: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
        scores = self.image(points)
        return scores, self.adjoint(curve(slice(0, self.blocks.n), scores))

    def dot(self, points: Tensor, others: Tensor, image_of_others: Tensor) -> Tensor:
        if self.loose is None:
            return (points * image_of_others).sum(1).double()
        image = torch.addr(image_of_others, others[:, -1], self.loose, alpha=-1)
        found = image.mul_(points[:, :-1]).sum(1).double()
        return found + points[:, -1].double() * others[:, -1].double()

    def prepare(self, curvature: float) -> None:
        if self.loose is not None:
            self._last = self.loose_penalty + max(curvature * float(self.loose.square().sum()), _LEAST)
        # -curvature value / (1 + curvature value), over the value.
        self._shrink = -curvature / (1 + curvature * self._values)

    def precondition(self, points: Tensor) -> Tensor:
        """The second derivative is 1 + curvature K' in the metric of K': its inverse, on the largest eigenvectors v.

        beta + v (shrink / value) (K' v).beta is symmetric in that metric for any v with v.K' v = value.
        """
        scaled = points.clone()
        coefficients = scaled[:, : self.blocks.n]
        if len(self._values):
            coefficients += ((coefficients @ self._images) * self._shrink) @ self._vectors.T
        if self.loose is not None:
            # Its own curvature is a sum over all images: without this it dwarfs everything else.
            scaled[:, -1] /= self._last
        return scaled

    def weights(self, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        coefficients = points[:, : self.blocks.n].double()
        weights = self.blocks.combine(coefficients.to(dtype)).double()
        if self.loose is None:
            return weights, torch.zeros(len(points), dtype=torch.float64, device=points.device)
        if self.loose_penalty == 0:
            return weights, points[:, -1].double() - weights @ self.blocks.mean
        along = self.along_mean(points)
        return weights.addr_(along, self.blocks.mean), along * self.scaling**2

    def along_mean(self, points: Tensor) -> Tensor:
        """(P,) float64: what a point's weights have of [mean; s] beside the centred images, without a free intercept.

        [x; s] = x' + v e with e = (mean, s) / length: what x' gives is the whole less its part along e.
        """
        coefficients = points[:, : self.blocks.n].double()
        if self.loose is None:
            return torch.zeros(len(points), dtype=torch.float64, device=points.device)
        last = points[:, -1].double()
        along: Tensor = coefficients.sum(1) + (last - coefficients @ self.loose.double()) / self._square**0.5
        return along


def _products(blocks: Blocks, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """X X^T (n, n) and X mean (n,) of the centred features, one pass over blocks of columns."""
    products = torch.zeros(blocks.n, blocks.n, dtype=dtype, device=blocks.device)
    along = torch.zeros(blocks.n, dtype=torch.float64, device=blocks.device)
    for columns, values in blocks.columns(dtype):
        add_squares(products, values)
        along += (values @ blocks.mean[columns].to(dtype)).double()
    complete(products)
    return products, along


def largest_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Roughly the largest eigenvalues (r,), descending, of a positive semidefinite matrix K, and vectors v.

    By subspace iteration from random vectors: near the eigenvectors where the eigenvalues lie apart, which matters.

    Returns:
        v (n, r), orthonormal, with v.K v diagonal; K v (n, r); that diagonal (r,).

    Source:
        Halko, Martinsson & Tropp, Finding structure with randomness, SIAM Review 53 (2011), algorithm 4.4.
    """
    width = min(count + _SPARE, len(matrix))
    random = torch.randn(len(matrix), width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = random.to(matrix)
    for _ in range(_SUBSPACE_STEPS):
        basis = torch.linalg.qr(matrix @ basis)[0]
    images = matrix @ basis
    small = basis.T @ images
    values, turn = torch.linalg.eigh((small + small.T) / 2)
    values, turn = values.flip(0)[:count].clamp_min(0), turn.flip(1)[:, :count]
    return (basis @ turn).contiguous(), (images @ turn).contiguous(), values


def _largest_eigenvalue(matrix: Tensor) -> float:
    """Of a positive semidefinite matrix, from below, by a few steps of the power method."""
    vector = torch.ones(len(matrix), dtype=matrix.dtype, device=matrix.device)
    vector[::2] = -1.0  # not all ones: centring has taken that direction out
    length = 0.0
    for _ in range(_POWER_STEPS):
        vector = matrix @ (vector / vector.norm().clamp_min(1e-30))
        length = float(vector.norm())
    return length


class Primal:
    """Points are weights of the D values and, with an intercept, one coefficient more, (P, D + 1).

    Attributes:
        constant: (width,) float64, what a unit of each coefficient adds to every score beside the centred features'
            part.
    """

    metric_needs_images = False

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
        self.loose = torch.ones(blocks.n, dtype=dtype, device=blocks.device) if intercept == "free" else None
        self.loose_penalty = 0.0
        constant = torch.zeros(self.width, dtype=torch.float64, device=blocks.device)
        if self.loose is not None:
            constant[-1] = 1.0
        else:
            constant[: blocks.d] = blocks.mean
            constant[blocks.d :] = self.scaling
        self.constant = constant
        self._scatter: Tensor | None = None
        self._factor: Tensor | None = None
        self._curvature = 0.0
        self.largest = 0.0  # preconditioned: what is expensive is not known beforehand

    def image(self, points: Tensor) -> Tensor:
        scores = torch.empty(len(points), self.blocks.n, dtype=self.dtype, device=self.blocks.device)
        weights = points[:, : self.blocks.d]
        for rows, values in self.blocks.rows(self.dtype):
            multiply(weights, values.T, out=scores[:, rows])
        return scores.add_((points.double() @ self.constant).to(self.dtype)[:, None])

    def adjoint(self, residual: Tensor) -> Tensor:
        gradient = torch.zeros(len(residual), self.width, dtype=self.dtype, device=self.blocks.device)
        for rows, values in self.blocks.rows(self.dtype):
            add_product(gradient[:, : self.blocks.d], residual[:, rows], values)
        total = residual.sum(1, dtype=torch.float64)
        return gradient.add_(torch.outer(total, self.constant).to(self.dtype))

    def bend(self, points: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
        scores = torch.empty(len(points), self.blocks.n, dtype=self.dtype, device=self.blocks.device)
        gradient = torch.zeros(len(points), self.width, dtype=self.dtype, device=self.blocks.device)
        weights, shift = points[:, : self.blocks.d], (points.double() @ self.constant).to(self.dtype)[:, None]
        total = torch.zeros(len(points), dtype=torch.float64, device=self.blocks.device)
        for rows, values in self._small_blocks():
            here = multiply(weights, values.T).add_(shift)
            scores[:, rows] = here
            curved = curve(rows, here)
            add_product(gradient[:, : self.blocks.d], curved, values)
            total += curved.sum(1, dtype=torch.float64)
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

    def dot(self, points: Tensor, others: Tensor, image_of_others: Tensor) -> Tensor:
        return (points * others).sum(1).double()

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
        matrix.diagonal()[: self.width - (self.loose is not None)].add_(1.0)
        if self.loose is not None:
            matrix[-1, -1].clamp_min_(_LEAST)

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

    def precondition(self, points: Tensor) -> Tensor:
        if not self.whole_matrix:
            return self._precondition_by_diagonal(points)
        assert self._factor is not None
        return torch.cholesky_solve(points.T, self._factor).T

    def _precondition_by_diagonal(self, points: Tensor) -> Tensor:
        """The inverse of 1 + curvature (squares + n constant constant^T), the last term by Sherman & Morrison."""
        assert self._scatter is not None
        inverse = self._curvature * self._scatter.double()
        inverse[: self.width - (self.loose is not None)] += 1.0
        if self.loose is not None:
            inverse[-1] = max(self._curvature * self.blocks.n, _LEAST)
            return (points / inverse).to(self.dtype)
        inverse.reciprocal_()
        weight = self._curvature * self.blocks.n
        along = inverse * self.constant
        share = weight * (points.double() @ along) / (1 + weight * (along @ self.constant))
        return (points * inverse).sub_(torch.outer(share, along)).to(self.dtype)

    def weights(self, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weights = points[:, : self.blocks.d].double()
        if self.loose is not None:
            return weights, points[:, -1].double() - weights @ self.blocks.mean
        if self.width == self.blocks.d:
            return weights, torch.zeros(len(points), dtype=torch.float64, device=points.device)
        return weights, points[:, -1].double() * self.scaling
