"""Fit heads at a C that is given, or chosen by cross-validation: all classes and folds at once along a path of C."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.errors import NonFiniteRow
from featx.heads.labels import Labels
from featx.heads.quality.metrics import GridPoint
from featx.heads.selection.folds import folds_of
from featx.heads.selection.scoring import score_of
from featx.heads.solver.certificate import Solution, Uncertified
from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.linear_algebra.readers import Values, normalizer_for
from featx.heads.solver.solver import Solver
from featx.heads.solver.targets import Targets
from featx.runtime.device import strict_precision
from featx.runtime.progress import SILENT, Reporter

GRID_DECADES = range(-3, 4)
BlocksOf = Callable[[npt.NDArray[np.bool_] | None], Blocks]


@dataclass(frozen=True)
class Found:
    """The heads at the best C.

    Attributes:
        curve: every C that was tried.
        solution: for normalised features.
        weights, bias: (K, D) and (K,) of the solution, for features of which only the rows' length is normalised.
        uncertified: what could not be proven, of all classes, values of C and folds.
        held_out_scores: (n, K) of each row by the heads of the fold that left it out, NaN where none did; None if
            not asked for.
    """

    c: float
    curve: list[GridPoint]
    solution: Solution
    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    uncertified: list[Uncertified]
    held_out_scores: npt.NDArray[np.float32] | None = None


def grid_for(variance: float) -> list[float]:
    """Seven powers of ten around the C at which data and regularisation weigh alike.

    The centre is 1 / (mean squared distance of the rows from their mean): scaling all features by s moves the
    grid by 1 / s^2, and so leaves the classifiers it holds as they were.

    >>> grid_for(0.01)
    [0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0]
    """
    centre = -round(math.log10(variance)) if variance > 0 else 0
    return [10.0 ** (centre + decade) for decade in GRID_DECADES]


@strict_precision()
def fit_heads(
    kind: str,
    values: Values,
    rows: npt.NDArray[np.intp],
    labels: Labels,
    classes: list[str],
    *,
    c: float | None,
    folds: int,
    seed: int,
    normalize: str,
    device: torch.device,
    memory_bytes: int,
    keep_scores: bool = False,
    copies: npt.NDArray[np.intp] | None = None,
    class_weights: npt.NDArray[np.float64] | None = None,
    score: str = "accuracy",
    products: Path | None = None,
    reporter: Reporter = SILENT,
) -> Found:
    """Heads of one kind for some rows of features.

    Args:
        kind: "svm" or "softmax".
        values: (N, D), an array or a tensor on the device.
        rows: the n rows to train on.
        labels: (n,) of these rows, 0..K-1, or membership (n, K).
        c: None to choose it by cross-validation.
        copies: (n,) which of these rows are of the same bytes, see `folds_of`.
        class_weights: (K,) factors on C for the images of each class, see `Targets`.
        score: of `scoring.SCORES`, by which C is chosen.
        products: see `Blocks`; of these rows, so normalised.
        keep_scores: also return scores of each row by heads that were trained without it.

    Raises:
        LabelError: there are too few rows for the folds.
        NonFiniteRow: a row of `values` holds NaN or infinite values.
    """
    targets = Targets(kind, labels, len(classes), None, class_weights)

    def blocks_of(of: npt.NDArray[np.bool_] | None) -> Blocks:
        normalizer = normalizer_for(normalize, values, rows if of is None else rows[of])
        kept = products if of is None else None
        return Blocks(values, rows, normalizer, device, memory_bytes // 2, kept)

    try:
        if c is None or keep_scores:
            c, curve, solution, uncertified, scores = _search(
                targets,
                blocks_of,
                folds_of(labels, folds, seed, classes, copies),
                grid=None if c is None else [c],
                shared=normalize != "standard",
                memory_bytes=memory_bytes // 2,
                keep_scores=keep_scores,
                score=score,
                reporter=reporter,
            )
        else:
            solver = Solver(blocks_of(None), targets, memory_bytes=memory_bytes // 2)
            solver.at(c)
            curve, solution, scores = [], solver.solution(solver.coef(), c), None
            uncertified = solution.uncertified(c)
    except NonFiniteRow as error:
        raise NonFiniteRow(int(rows[error.row])) from error
    weights, bias = normalizer_for(normalize, values, rows).fold(solution.weights, solution.bias)
    return Found(c, curve if len(curve) > 1 else [], solution, weights, bias, uncertified, scores)


def _search(
    targets: Targets,
    blocks_of: BlocksOf,
    held_out: npt.NDArray[np.bool_],
    *,
    grid: list[float] | None,
    shared: bool,
    memory_bytes: int,
    keep_scores: bool,
    score: str,
    reporter: Reporter,
) -> tuple[float, list[GridPoint], Solution, list[Uncertified], npt.NDArray[np.float32] | None]:
    """The C with the best mean score over folds, of equals the smallest; and the heads there.

    Args:
        blocks_of: the features, normalised by what can be learnt from some of the rows (n,), None for all of them.
        held_out: (F, n), what each fold leaves out; each fold is normalised by its own training rows.
        grid: values of C to try; by default `grid_for` the features.
        shared: normalisation learns nothing from the rows, so that all folds can share one set of features.
    """
    held_out = held_out[held_out.any(axis=1)]  # of very few images a fold can be left without any
    blocks = blocks_of(None)
    grid = grid or grid_for(blocks.variance)
    kept = np.full((len(grid), len(targets.labels), targets.classes), np.nan, np.float32) if keep_scores else None
    reporter.begin("choosing C", len(grid) * (1 if shared else 1 + len(held_out)))
    reached = np.zeros((len(grid), len(held_out)))
    uncertified: list[Uncertified] = []

    def note(index: int, fold: int, scores: Tensor) -> None:
        found = scores[:, torch.from_numpy(held_out[fold]).to(scores.device)].T.cpu().numpy()
        given = found
        if score == "ap" and targets.kind == "softmax":  # images are ranked by their probabilities
            given = torch.softmax(torch.from_numpy(found).double(), 1).numpy()
        reached[index, fold] = score_of(score, given, targets.labels[held_out[fold]])
        if kept is not None:
            kept[index, held_out[fold]] = found

    if not shared:
        for fold, left_out in enumerate(held_out):
            alone = Solver(
                blocks_of(~left_out), targets, held_out=left_out[None], whole=False, memory_bytes=memory_bytes
            )
            for index, c in enumerate(grid):
                alone.at(c)
                note(index, fold, alone.scores(0))
                reporter.advance(1)
            uncertified += [replace(one, fold=fold) for one in alone.uncertified]
    solver = Solver(blocks, targets, held_out=held_out if shared else None, memory_bytes=memory_bytes)
    best: tuple[float, float, Tensor] | None = None
    for index, c in enumerate(grid):
        solver.at(c)
        reporter.advance(1)
        for fold in range(len(held_out) if shared else 0):
            note(index, fold, solver.scores(1 + fold))
        if best is None or reached[index].mean() > best[0]:
            best = float(reached[index].mean()), c, solver.coef()
    reporter.end()
    assert best is not None
    _, chosen, coef = best
    solution = solver.solution(coef, chosen)
    # The heads that are kept have a proof of their own, on the features themselves.
    uncertified += [one for one in solver.uncertified if (one.c, one.fold) != (chosen, None)]
    uncertified += solution.uncertified(chosen)
    curve = [GridPoint(c, float(row.mean()), float(row.std())) for c, row in zip(grid, reached, strict=True)]
    return chosen, curve, solution, uncertified, None if kept is None else kept[grid.index(chosen)]
