"""The optimiser of a training, and what it remembers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featx.config import FinetuneConfig
from featx.training.rates import Rate

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
