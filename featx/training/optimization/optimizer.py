"""How all rates of a run rise and fall together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featx.options.training import FinetuneConfig
from featx.training.learning_rates import Rate

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


Parameters = dict[str, nn.Parameter]


def make_optimiser(rates: Sequence[Rate], parameters: Parameters, config: FinetuneConfig) -> torch.optim.Optimizer:
    """One parameter group per rate and decay; what is frozen for ever is in none."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for rate in rates:
        if rate.rate > 0:
            parameter = parameters[rate.parameter]
            decay = config.weight_decay if rate.decay is None else rate.decay
            if config.no_bias_decay and parameter.ndim <= 1:
                decay = 0.0
            groups.setdefault((rate.rate, decay), []).append(parameter)
    described = [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in groups.items()]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(described)
    return torch.optim.SGD(described, momentum=config.momentum)


def state_of(optimiser: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """What it remembers of each parameter, as PARAMETER/WHAT."""
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def put_state(optimiser: torch.optim.Optimizer, parameters: Parameters, tensors: dict[str, Tensor]) -> None:
    """Have it remember what `state_of` has given."""
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        states.setdefault(parameter, {})[key] = tensor
    for name, state in states.items():
        own = parameters[name]
        optimiser.state[own] = {
            key: value if key == "step" else value.to(own.device, own.dtype) for key, value in state.items()
        }
