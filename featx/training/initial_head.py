"""Where a new final layer starts: at the optimum of a convex head on the frozen features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn

from featx.heads.calibration import calibrate, platt
from featx.heads.labels import Labels
from featx.heads.normalize import Normalizer
from featx.heads.selection.scoring import score_of
from featx.heads.selection.search import Found, fit_heads
from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.linear_algebra.readers import Values
from featx.networks.build import final_layer
from featx.runtime.memory import free_memory
from featx.runtime.progress import Reporter
from featx.training.checkpoint import save_tensors
from featx.training.task import Task

FOLDS = 5
SEARCHED = 10_000  # 42 fits of a hundred thousand images would take longer than an epoch


def fit_first_head(
    kind: str,
    values: Values,
    task: Task,
    path: Path,
    *,
    seed: int,
    device: torch.device,
    reporter: Reporter,
) -> None:
    """Fit a head to what goes into the final layer and store it, weights (K, D) and bias (K,).

    Of many images, C is chosen on some; the head is fitted on all.

    Args:
        kind: "softmax" or "svm". Margins of an SVM are no logits: one factor, learnt on held-out folds, makes the
            best of them as such.
        values: (N, D) of all rows of the manifest, an array or a tensor on the device.
    """
    rows, labels = task.train, task.labels[task.train]
    several = labels.ndim == 2
    some = sample_of(labels, seed)

    def fit(part: npt.NDArray[np.intp], c: float | None, folds: int, *, keep_scores: bool = False) -> Found:
        return fit_heads(
            "svm" if several else kind,
            values,
            rows[part],
            labels[part],
            task.classes,
            c=c,
            folds=folds,
            seed=seed,
            normalize="none",
            device=device,
            memory_bytes=free_memory(device) // 2,
            keep_scores=keep_scores or ((kind == "svm" or several) and c is None),
            reporter=reporter,
        )

    if labels.ndim == 2:
        _fit_several(fit, labels, path)
        return
    folds, slope, everything = min(FOLDS, int(np.bincount(labels).min())), 1.0, np.arange(len(rows))
    if folds < 2:
        # A class with one image cannot be cross-validated: the C at which data and regularisation weigh alike.
        c = 1 / max(Blocks(values, rows[:1000], Normalizer("none"), device, 0).variance, 1e-12)
        found = fit(everything, c, folds)
    else:
        found = fit(some, None, folds)
        if len(some) < len(rows):
            # An SVM's margins grow with the number of images: its slope is that of heads of about as many.
            found = fit(everything, found.c, folds, keep_scores=kind == "svm")
        if found.held_out_scores is not None:
            known = ~np.isnan(found.held_out_scores).any(axis=1)
            slope = calibrate("temperature", found.held_out_scores[known], labels[known]).slopes[0]
    save_tensors(
        path, {"weights": torch.from_numpy(slope * found.weights), "bias": torch.from_numpy(slope * found.bias)}
    )


def _fit_several(fit: Callable[[npt.NDArray[np.intp], float | None, int], Found], labels: Labels, path: Path) -> None:
    """An SVM of each class against the rest, whose margins Platt's sigmoid makes logits of."""
    folds = min(FOLDS, int(labels.sum(axis=0).max()))
    found = fit(np.arange(len(labels)), None, folds) if folds > 1 else fit(np.arange(len(labels)), 1.0, folds)
    slopes, offsets = np.ones(labels.shape[1]), np.zeros(labels.shape[1])
    if found.held_out_scores is not None:
        known = ~np.isnan(found.held_out_scores).any(axis=1)
        for place in range(labels.shape[1]):
            scores = found.held_out_scores[known, place].astype(np.float64)
            slopes[place], offsets[place] = platt(scores, labels[known, place].astype(bool))
    weights, bias = slopes[:, None] * found.weights, slopes * found.bias + offsets
    save_tensors(path, {"weights": torch.from_numpy(weights), "bias": torch.from_numpy(bias)})


def sample_of(labels: Labels, seed: int) -> npt.NDArray[np.intp]:
    """Positions of the rows on which C is chosen: all, or about `SEARCHED` of them, sorted.

    Every class has the same share of them, but not fewer than there are folds. C weighs a sum over images against one
    regulariser, so that what is best for some of them is near what is best for all.
    """
    if len(labels) <= SEARCHED or labels.ndim == 2:
        return np.arange(len(labels))
    generator, chosen = np.random.default_rng(seed), []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(round(SEARCHED * len(rows) / len(labels)), FOLDS)])
    return np.sort(np.concatenate(chosen))


def put_head(network: nn.Module, path: Path, values: npt.NDArray[Any], task: Task) -> float | None:
    """Copy a stored head into the final layer; its accuracy on the validation images, None without any."""
    head = load_file(path)
    final = network.get_submodule(final_layer(network))
    with torch.no_grad():
        final.weight.copy_(head["weights"])  # type: ignore[operator]  # a Linear's weight is a tensor
        final.bias.copy_(head["bias"])  # type: ignore[operator]  # and so is its bias
    if not len(task.val):
        return None
    scores = np.asarray(values[task.val], np.float64) @ head["weights"].T.numpy() + head["bias"].numpy()
    return score_of("accuracy", scores, task.labels[task.val])
