"""Which learning rate? Train a little while all rates grow, and look at the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featx.training.trainer import Trainer

_SMOOTHING = 0.9  # share of the old mean loss in the new one
_TOO_HIGH = 4.0  # times the least loss: no rate beyond it is of use


@dataclass(frozen=True)
class RangeTest:
    """What the loss did.

    Attributes:
        factors: (n,) all rates were multiplied by, growing.
        losses: (n,) of each step; smooth: their running mean.
        suggested: the factor where the smooth loss falls fastest; None where it never falls.
        least: the factor at the least smooth loss, a tenth of which is another rule.
    """

    factors: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    smooth: npt.NDArray[np.float64]
    suggested: float | None
    least: float


def range_test(
    trainer: Trainer, lowest: float, highest: float, steps: int, advance: Callable[[int], None] = lambda done: None
) -> RangeTest:
    """Take steps with rates that grow evenly in their logarithm, until the loss has grown out of hand.

    Source:
        Smith, Cyclical learning rates for training neural networks, WACV 2017.
    """
    factors = np.geomspace(lowest, highest, steps)
    losses: list[float] = []
    smooth: list[float] = []
    mean = 0.0
    for number, factor in enumerate(factors.tolist()):
        loss = trainer.try_step(factor)
        advance(1)
        if not math.isfinite(loss):
            break
        losses.append(loss)
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smooth.append(mean / (1 - _SMOOTHING ** (number + 1)))
        if smooth[-1] > _TOO_HIGH * min(smooth):
            break
    count = len(losses)
    return judged(factors[:count], np.array(losses), np.array(smooth))


def judged(
    factors: npt.NDArray[np.float64], losses: npt.NDArray[np.float64], smooth: npt.NDArray[np.float64]
) -> RangeTest:
    """Suggest a factor: the steepest fall of the smooth loss before its least value."""
    best = int(smooth.argmin()) if len(smooth) else 0
    suggested = None
    if best >= 2:
        slopes = np.gradient(smooth[: best + 1], np.log(factors[: best + 1]))
        if slopes.min() < 0:
            suggested = float(factors[int(slopes.argmin())])
    return RangeTest(factors, losses, smooth, suggested, float(factors[best]) if len(factors) else math.nan)
