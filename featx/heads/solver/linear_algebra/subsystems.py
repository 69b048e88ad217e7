"""Many restricted systems of one symmetric matrix, solved by Cholesky factors."""

from __future__ import annotations

import torch
from torch import Tensor

from featx.runtime.device import upload

_VALUES_AT_ONCE = 1 << 24  # on a GPU small systems are solved in batches of about this many values


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
