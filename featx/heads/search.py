"""Choose C by cross-validation: all classes and folds at once, along a path of C."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from featx.errors import LabelError
from featx.heads.normalize import Normalizer
from featx.heads.solver.blocks import Blocks
from featx.heads.solver.path import Solution, Solver, Uncertified
from featx.heads.solver.targets import Targets
from featx.progress import SILENT, Reporter

GRID_DECADES = range(-3, 4)
BlocksOf = Callable[[npt.NDArray[np.bool_] | None], Blocks]


@dataclass(frozen=True)
class GridPoint:
    """Cross-validated accuracy at one value of C: mean and standard deviation over the folds."""

    c: float
    accuracy: float
    deviation: float


@dataclass(frozen=True)
class Found:
    """The heads at the best C.

    Attributes:
        curve: every C that was tried.
        solution: for normalised features.
        uncertified: what could not be proven, of all classes, values of C and folds.
        held_out_scores: (n, K) of each row by the heads of the fold that left it out; None if not asked for.
    """

    c: float
    curve: list[GridPoint]
    solution: Solution
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


def stratified_folds(
    labels: npt.NDArray[np.integer], folds: int, seed: int, classes: list[str]
) -> npt.NDArray[np.bool_]:
    """(F, n): which rows each fold holds out.

    Raises:
        LabelError: a class has fewer rows than folds.
    """
    counts = np.bincount(labels)
    rarest = int(counts.argmin())
    if counts[rarest] < folds:
        raise LabelError(
            f"class {classes[rarest]!r} has {counts[rarest]} images to train on; --c auto with --folds {folds} needs "
            f"{folds}. Give a value with --c, or fewer --folds"
        )
    held_out = np.zeros((folds, len(labels)), bool)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(labels, labels)):
        held_out[fold, test] = True
    return held_out


def choose_c(
    targets: Targets,
    blocks_of: BlocksOf,
    held_out: npt.NDArray[np.bool_],
    *,
    shared: bool,
    memory_bytes: int,
    grid: list[float] | None = None,
    keep_scores: bool = False,
    reporter: Reporter = SILENT,
) -> Found:
    """The C with the best mean accuracy over folds, of equals the smallest; and the heads there.

    Args:
        blocks_of: the features, normalised by what can be learnt from some of the rows (n,), None for all of them.
        held_out: (F, n), what each fold leaves out; each fold is normalised by its own training rows.
        grid: values of C to try; by default `grid_for` the features.
        keep_scores: also return the held-out scores.
        shared: normalisation learns nothing from the rows, so that all folds can share one set of features.
    """
    blocks = blocks_of(None)
    grid = grid or grid_for(blocks.variance)
    scores = np.zeros((len(grid), len(targets.labels), targets.classes), np.float32) if keep_scores else None
    reporter.begin("choosing C", len(grid) * (1 if shared else 1 + len(held_out)))
    accuracy = np.zeros((len(grid), len(held_out)))
    uncertified: list[Uncertified] = []
    if not shared:
        for fold, left_out in enumerate(held_out):
            alone = Solver(
                blocks_of(~left_out), targets, held_out=left_out[None], whole=False, memory_bytes=memory_bytes
            )
            for index, c in enumerate(grid):
                alone.at(c)
                accuracy[index, fold] = _accuracy(alone.scores(0), targets, left_out)
                if scores is not None:
                    scores[index, left_out] = alone.scores(0).T.cpu().numpy()[left_out]
                reporter.advance(1)
            uncertified += [Uncertified(u.c, u.problem, fold, u.gap) for u in alone.uncertified]
    solver = Solver(blocks, targets, held_out=held_out if shared else None, memory_bytes=memory_bytes)
    best: tuple[float, float, Tensor] | None = None
    for index, c in enumerate(grid):
        solver.at(c)
        reporter.advance(1)
        if shared:
            accuracy[index] = [
                _accuracy(solver.scores(1 + fold), targets, left_out) for fold, left_out in enumerate(held_out)
            ]
            if scores is not None:
                for fold, left_out in enumerate(held_out):
                    scores[index, left_out] = solver.scores(1 + fold).T.cpu().numpy()[left_out]
        if best is None or accuracy[index].mean() > best[0]:
            best = float(accuracy[index].mean()), c, solver.points()
    reporter.end()
    assert best is not None
    curve = [GridPoint(c, float(row.mean()), float(row.std())) for c, row in zip(grid, accuracy, strict=True)]
    chosen = None if scores is None else scores[grid.index(best[1])]
    return Found(best[1], curve, solver.solution(best[2], best[1]), uncertified + solver.uncertified, chosen)


def _accuracy(scores: Tensor, targets: Targets, held_out: npt.NDArray[np.bool_]) -> float:
    predicted = scores[:, torch.from_numpy(held_out).to(scores.device)].argmax(0).cpu().numpy()
    return float((predicted == targets.labels[held_out]).mean())


def normalised_blocks(
    values: npt.NDArray[np.floating],
    rows: npt.NDArray[np.intp],
    kind: str,
    device: torch.device,
    resident_bytes: int,
) -> BlocksOf:
    """`blocks_of` for rows of an array, normalised as `kind` says."""

    def blocks_of(of: npt.NDArray[np.bool_] | None) -> Blocks:
        normalizer = Normalizer.fit(kind, values, rows if of is None else rows[of])
        return Blocks(values, rows, normalizer, device, resident_bytes)

    return blocks_of
