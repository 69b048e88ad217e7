"""Coefficients on the n images: products of the images with each other."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from featx.errors import FileFormatError
from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.linear_algebra.matmul import add_squares, complete, multiply
from featx.heads.solver.linear_algebra.space import LEAST_CURVATURE, CurvatureProduct
from featx.runtime.files import disk_errors, replacing

_POWER_STEPS = 6
_EIGENPAIRS, _SPARE, _SUBSPACE_STEPS = 32, 8, 3  # of the Gram form's preconditioner


class Gram:
    """Coefficients are coefficients of the images and, last, of the mean direction or the free intercept, (P, n + 1).

    Attributes:
        products: (n, n), the K' above.
    """

    metric_needs_scores = True

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
        self.extra_column: Tensor | None = None
        self.extra_penalty = 1.0
        self._square = float(blocks.mean.square().sum()) + self.scaling**2
        if intercept == "free":
            self.extra_column, self.extra_penalty = torch.ones(blocks.n, dtype=dtype, device=blocks.device), 0.0
        elif self._square > 0:
            self.products.addr_(along.to(dtype), (along / -self._square).to(dtype))
            self.extra_column = ((along + self._square) / self._square**0.5).to(dtype)
        self.width = blocks.n + (self.extra_column is not None)
        self._vectors, self._mapped_vectors, self._values = largest_eigenpairs(
            self.products, min(_EIGENPAIRS, blocks.n // 8)
        )
        self.largest = float(self._values[0]) if len(self._values) else _largest_eigenvalue(self.products)
        self._shrink = torch.zeros_like(self._values)

    def decision_function(self, coef: Tensor) -> Tensor:
        scores = multiply(coef[:, : self.blocks.n], self.products)
        return scores if self.extra_column is None else scores.addr_(coef[:, -1], self.extra_column)

    def adjoint(self, residual: Tensor) -> Tensor:
        if self.extra_column is None:
            return residual
        # In float64: the sum over all images cancels to a small part of its terms.
        last = residual.double() @ self.extra_column.double()
        return torch.cat([residual, last.to(self.dtype)[:, None]], 1)

    def hessian_vector_product(self, coef: Tensor, curvature_product: CurvatureProduct) -> tuple[Tensor, Tensor]:
        scores = self.decision_function(coef)
        return scores, self.adjoint(curvature_product(slice(0, self.blocks.n), scores))

    def dot(self, coef: Tensor, others: Tensor, scores_of_others: Tensor) -> Tensor:
        if self.extra_column is None:
            return (coef * scores_of_others).sum(1).double()
        scores = torch.addr(scores_of_others, others[:, -1], self.extra_column, alpha=-1)
        found = scores.mul_(coef[:, :-1]).sum(1).double()
        return found + coef[:, -1].double() * others[:, -1].double()

    def prepare(self, curvature: float) -> None:
        if self.extra_column is not None:
            self._last = self.extra_penalty + max(
                curvature * float(self.extra_column.square().sum()), LEAST_CURVATURE
            )
        # -curvature value / (1 + curvature value), over the value.
        self._shrink = -curvature / (1 + curvature * self._values)

    def precondition(self, coef: Tensor) -> Tensor:
        """The second derivative is 1 + curvature K' in the metric of K': its inverse, on the largest eigenvectors v.

        beta + v (shrink / value) (K' v).beta is symmetric in that metric for any v with v.K' v = value.
        """
        scaled = coef.clone()
        coefficients = scaled[:, : self.blocks.n]
        if len(self._values):
            coefficients += ((coefficients @ self._mapped_vectors) * self._shrink) @ self._vectors.T
        if self.extra_column is not None:
            # Its own curvature is a sum over all images: without this it dwarfs everything else.
            scaled[:, -1] /= self._last
        return scaled

    def weights(self, coef: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        coefficients = coef[:, : self.blocks.n].double()
        weights = self.blocks.combine(coefficients.to(dtype)).double()
        if self.extra_column is None:
            return weights, torch.zeros(len(coef), dtype=torch.float64, device=coef.device)
        if self.extra_penalty == 0:
            return weights, coef[:, -1].double() - weights @ self.blocks.mean
        along = self.along_mean(coef)
        return weights.addr_(along, self.blocks.mean), along * self.scaling**2

    def along_mean(self, coef: Tensor) -> Tensor:
        """(P,) float64: what a point's weights have of [mean; s] beside the centred images, without a free intercept.

        [x; s] = x' + v e with e = (mean, s) / length: what x' gives is the whole less its part along e.
        """
        coefficients = coef[:, : self.blocks.n].double()
        if self.extra_column is None:
            return torch.zeros(len(coef), dtype=torch.float64, device=coef.device)
        last = coef[:, -1].double()
        along: Tensor = coefficients.sum(1) + (last - coefficients @ self.extra_column.double()) / self._square**0.5
        return along


def _products(blocks: Blocks, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """X X^T (n, n) and X mean (n,) of the centred features, one pass over blocks of columns; kept ones are read."""
    path = None if blocks.products is None else blocks.products.with_suffix(f".{str(dtype)[6:]}.safetensors")
    if path is not None and path.exists():
        return _read(path, blocks.n, dtype, blocks.device)
    products = torch.zeros(blocks.n, blocks.n, dtype=dtype, device=blocks.device)
    along = torch.zeros(blocks.n, dtype=torch.float64, device=blocks.device)
    for columns, values in blocks.columns(dtype):
        add_squares(products, values)
        along += (values @ blocks.mean[columns].to(dtype)).double()
    complete(products)
    if path is not None:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file({"products": products.cpu(), "along": along.cpu()}, partial)
    return products, along


def _read(path: Path, count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Products that an earlier fit has kept.

    Raises:
        FileFormatError: the file is damaged.
    """
    try:
        found = load_file(path, str(device))
        products, along = found["products"], found["along"]
    except (OSError, SafetensorError, KeyError) as error:
        raise FileFormatError(f"{path} is damaged; delete it ({' '.join(str(error).split())})") from error
    if products.shape != (count, count) or products.dtype != dtype or along.shape != (count,):
        raise FileFormatError(f"{path} is damaged: it does not hold the products of {count:,} images; delete it")
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
    mapped = matrix @ basis
    small = basis.T @ mapped
    values, rotation = torch.linalg.eigh((small + small.T) / 2)
    values, rotation = values.flip(0)[:count].clamp_min(0), rotation.flip(1)[:, :count]
    return (basis @ rotation).contiguous(), (mapped @ rotation).contiguous(), values


def _largest_eigenvalue(matrix: Tensor) -> float:
    """Of a positive semidefinite matrix, from below, by a few steps of the power method."""
    vector = torch.ones(len(matrix), dtype=matrix.dtype, device=matrix.device)
    vector[::2] = -1.0  # not all ones: centring has taken that direction out
    length = 0.0
    for _ in range(_POWER_STEPS):
        vector = matrix @ (vector / vector.norm().clamp_min(1e-30))
        length = float(vector.norm())
    return length
