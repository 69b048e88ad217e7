"""How well responses of brains, cells or people to images can be predicted linearly from features.

Ridge regression of every response, its penalty chosen for each response by leaving one image out, within every fold
that is held out (nested cross-validation). All of it comes from one inverse per penalty: with K the products of the n
training images' features and the intercept as a border,

    [K + alpha I, 1; 1', 0]^-1 = [M, .; ., .]

M y / diag(M) are the errors of leaving one image out, M_FF^-1 (M y)_F those of leaving out the images of F, and
M_RR - M_RF M_FF^-1 M_FR is the matrix of the others alone. Where there are few values for many images, the same is
computed for each fold from the products of the values.

Source:
    Golub, Heath & Wahba, Generalized cross-validation, Technometrics 1979 (leave-one-out); the others by the inverse
    of a partitioned matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
DECADES = range(-4, 6)


@dataclass(frozen=True)
class Encoding:
    """How well R responses are predicted.

    Attributes:
        r: (R,) Pearson's correlation of held-out predictions and responses, mean over the folds; NaN where a response
            does not vary.
        r2: (R,) 1 - squared error / variance of the held-out responses, mean over the folds.
        alphas: (F, R) the penalty that each fold has chosen.
    """

    r: Floats
    r2: Floats
    alphas: Floats


def grid_for(values: npt.NDArray[np.floating]) -> Floats:
    """Ten powers of ten around the mean squared distance of the rows (n, d) from their mean."""
    rows = np.asarray(values, np.float64)
    centre = float(np.square(rows - rows.mean(axis=0)).sum(axis=1).mean())
    middle = round(np.log10(centre)) if centre > 0 else 0
    return np.array([10.0 ** (middle + decade) for decade in DECADES])


def bytes_needed(images: int, values: int, responses: int) -> int:
    """Of memory, about, for `encode`."""
    inside = 3 * min(images, values + 1) ** 2 if by_values(images, values) else 3 * images**2
    return 8 * (inside + images * values + 6 * images * responses)


def by_values(images: int, values: int) -> bool:
    """Whether the products of the values are the smaller problem."""
    return values < 0.4 * images


def encode(
    values: npt.NDArray[np.floating],
    responses: Floats,
    held_out: npt.NDArray[np.bool_],
    alphas: Floats,
    device: torch.device,
    advance: Callable[[int], None] = lambda done: None,
) -> Encoding:
    """Predict responses (n, R) from features (n, d) by ridge regression with an intercept, in float64.

    Args:
        held_out: (F, n) which images each outer fold leaves out.
        alphas: penalties, growing; of equal errors the smallest is taken.
        advance: is told of every penalty.
    """
    x = torch.from_numpy(np.asarray(values, np.float64)).to(device)
    x = x - x.mean(0)
    y = torch.from_numpy(responses).to(device)
    # In units of their own: nothing below depends on them, and squares of very large or small numbers have no room.
    largest = y.abs().amax(0)
    y = y / torch.where(largest > 0, largest, 1.0)
    y = y - y.mean(0)
    folds = [torch.from_numpy(np.flatnonzero(one)).to(device) for one in held_out]
    others = [torch.from_numpy(np.flatnonzero(~one)).to(device) for one in held_out]
    count, best = len(folds), torch.full((len(folds), y.shape[1]), torch.inf, dtype=torch.float64, device=device)
    chosen = torch.zeros_like(best)
    predicted = torch.zeros_like(y)
    errors_at = _by_values(x, y, folds, others) if by_values(*x.shape) else _by_images(x, y, folds, others)
    for alpha in alphas.tolist():
        at = errors_at(alpha)
        for fold in range(count):
            loo, outer = at(fold)
            better = loo < best[fold]
            best[fold] = torch.where(better, loo, best[fold])
            chosen[fold] = torch.where(better, alpha, chosen[fold])
            rows = folds[fold]
            predicted[rows] = torch.where(better, y[rows] - outer, predicted[rows])
        advance(1)
    found = [_quality(predicted[rows], y[rows]) for rows in folds]
    r, r2 = (torch.stack(parts).mean(0).cpu().numpy() for parts in zip(*found, strict=True))
    return Encoding(r, r2, chosen.cpu().numpy())


Errors = Callable[[int], tuple[Tensor, Tensor]]  # fold -> (R,) mean squared error of leaving one out, (n_F, R) errors


def _by_images(x: Tensor, y: Tensor, folds: list[Tensor], others: list[Tensor]) -> Callable[[float], Errors]:
    products = x @ x.T

    def at(alpha: float) -> Errors:
        matrix = products.clone()
        matrix.diagonal().add_(alpha)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        column = inverse.sum(1)
        inverse.addr_(column, column / -column.sum())  # the border: an intercept without a penalty
        coefficients = inverse @ y

        def errors(fold: int) -> tuple[Tensor, Tensor]:
            out, rest = folds[fold], others[fold]
            block = torch.linalg.cholesky(inverse[out][:, out])
            outer = torch.cholesky_solve(coefficients[out], block)
            beside = inverse[out][:, rest]
            lower = torch.linalg.solve_triangular(block, beside, upper=False)
            diagonal = inverse.diagonal()[rest] - lower.square().sum(0)
            left = (coefficients[rest] - beside.T @ outer) / diagonal[:, None]
            return left.square().mean(0), outer

        return errors

    return at


def _by_values(x: Tensor, y: Tensor, folds: list[Tensor], others: list[Tensor]) -> Callable[[float], Errors]:
    parts = []
    for out, rest in zip(folds, others, strict=True):
        mean, mean_y = x[rest].mean(0), y[rest].mean(0)
        own = x[rest] - mean
        parts.append((own, y[rest] - mean_y, x[out] - mean, y[out] - mean_y, own.T @ own))

    def at(alpha: float) -> Errors:
        def errors(fold: int) -> tuple[Tensor, Tensor]:
            own, own_y, theirs, their_y, products = parts[fold]
            matrix = products.clone()
            matrix.diagonal().add_(alpha)
            factor = torch.linalg.cholesky(matrix)
            weights = torch.cholesky_solve(own.T @ own_y, factor)
            lower = torch.linalg.solve_triangular(factor, own.T, upper=False)
            leverage = lower.square().sum(0) + 1 / len(own)
            left = (own_y - own @ weights) / (1 - leverage)[:, None]
            return left.square().mean(0), their_y - theirs @ weights

        return errors

    return at


def _quality(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's r and R^2 of every column."""
    first, second = predicted - predicted.mean(0), true - true.mean(0)
    scale = first.norm(dim=0) * second.norm(dim=0)
    # A prediction that is the same for all images correlates with nothing; a response that is has no correlation.
    r = torch.where(scale > 0, (first * second).sum(0) / scale, 0.0)
    varies = second.norm(dim=0) > 0
    residual = (predicted - true).square().sum(0)
    r2 = 1 - residual / torch.where(varies, second.square().sum(0), 1.0)
    return torch.where(varies, r, torch.nan), torch.where(varies, r2, torch.nan)


def noise_ceiling(repeats: Floats) -> Floats:
    """(R,) the highest correlation that a model of the signal can have with the mean of repeats (k, n, R), k >= 2.

    The variance of an image's repeats is noise; what of the variance of the images' means is not noise is signal.

    Source:
        Allen et al., A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence, Nature
        Neuroscience 25 (2022), Methods, "Noise ceiling estimation"; the square root of its share of variance.
    """
    noise = repeats.var(axis=0, ddof=1).mean(axis=0) / len(repeats)
    total = repeats.mean(axis=0).var(axis=0, ddof=1)
    signal = np.maximum(total - noise, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sqrt(signal / (signal + noise)))
