"""How all rates of a run rise and fall together."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "step", "constant")


def rate_factor(schedule: str, epoch: float, epochs: int, warmup: float) -> float:
    """What every learning rate is multiplied with at a point of the training.

    cosine: down to 0 at the end. step: to a tenth after each third. constant: 1. Before that a linear rise from 0
    over `warmup` epochs.

    Args:
        epoch: how far the training has come, in epochs with their fraction.

    >>> [round(rate_factor("cosine", epoch, 10, 2), 3) for epoch in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if epoch < warmup:
        return epoch / warmup
    done = (epoch - warmup) / max(epochs - warmup, 1e-9)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return 0.1 ** math.floor(3 * min(done, 0.999)) if schedule == "step" else 1.0
