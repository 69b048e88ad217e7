"""Where a new final layer starts: at the optimum of a convex head on the frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn

from featx.device import free_memory
from featx.heads.calibrate import calibrate
from featx.heads.search import fit_heads
from featx.networks.construct import final_layer
from featx.progress import Reporter
from featx.training.checkpoint import save_tensors
from featx.training.task import Task

FOLDS = 5


def fit_first_head(
    kind: str,
    values: npt.NDArray[Any],
    task: Task,
    path: Path,
    *,
    seed: int,
    device: torch.device,
    reporter: Reporter,
) -> None:
    """Fit a head to what goes into the final layer and store it, weights (K, D) and bias (K,).

    Args:
        kind: "softmax" or "svm". Margins of an SVM are no logits: one factor, learnt on held-out folds, makes the
            best of them as such.
        values: (N, D) of all rows of the manifest.
    """
    labels = task.labels[task.train]
    folds, c = min(FOLDS, int(np.bincount(labels).min())), None
    if folds < 2:
        # A class with one image cannot be cross-validated: the C at which data and regularisation weigh alike.
        c = 1 / max(float(np.var(values[task.train[:1000]], axis=0, dtype=np.float64).sum()), 1e-12)
    found = fit_heads(
        kind,
        values,
        task.train,
        labels,
        task.classes,
        c=c,
        folds=folds,
        seed=seed,
        normalize="none",
        device=device,
        memory_bytes=free_memory(device) // 2,
        keep_scores=kind == "svm" and c is None,
        reporter=reporter,
    )
    slope = 1.0
    if found.held_out_scores is not None:
        slope = calibrate("temperature", found.held_out_scores, labels).slopes[0]
    save_tensors(
        path, {"weights": torch.from_numpy(slope * found.weights), "bias": torch.from_numpy(slope * found.bias)}
    )


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
    return float((scores.argmax(1) == task.labels[task.val]).mean())
