"""What a training changes of a network: the weights, their moving average, and what is stored of both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from featx.errors import FileFormatError
from featx.training.learning_rates import Rate


class TrainedWeights:
    """The parameters with a rate of their own, in the network.

    Attributes:
        parameters: by name, those that are trained now or in a later epoch.
    """

    def __init__(self, network: nn.Module, rates: Sequence[Rate], ema: float | None) -> None:
        """Args:

        ema: share of the old average that stays in every step; None for no average.
        """
        everything = dict(network.named_parameters())
        self._network, self._ema = network, ema
        self.parameters = {rate.parameter: everything[rate.parameter] for rate in rates if rate.rate > 0}
        self._average = (
            {} if ema is None else {name: tensor.clone() for name, tensor in self._averaged_ones().items()}
        )

    def _averaged_ones(self) -> dict[str, Tensor]:
        """The parameters, and the statistics of BatchNorm, which are those of the weights they were taken with."""
        buffers = dict(self._network.named_buffers())
        return {name: p.detach() for name, p in self.parameters.items()} | {
            name: tensor for name, tensor in buffers.items() if tensor.is_floating_point()
        }

    def step(self, number: int) -> None:
        """Update the average after a step, by its number from 0.

        The memory grows to what was asked for, (1 + t) / (10 + t) in step t: else the average of a short training
        stays near the start. TensorFlow's ExponentialMovingAverage(num_updates=t) does the same.
        """
        if self._ema is not None:
            own = self._averaged_ones()
            memory = min(self._ema, (1 + number) / (10 + number))
            update = get_ema_multi_avg_fn(memory)  # type: ignore[no-untyped-call]  # torch has no type for it
            update(list(self._average.values()), [own[name] for name in self._average], 0)

    def broken(self) -> list[str]:
        """The names of those that hold NaN or infinite values."""
        return [name for name, p in self.parameters.items() if not bool(torch.isfinite(p).all())]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has its averaged weights, if there are any."""
        targets = self._averaged_ones() if self._average else {}
        own = {name: tensor.clone() for name, tensor in targets.items()}
        with torch.no_grad():
            for name, tensor in targets.items():
                tensor.copy_(self._average[name])
            try:
                yield
            finally:
                for name, tensor in targets.items():
                    tensor.copy_(own[name])

    def changing(self) -> dict[str, Tensor]:
        """The network without the parameters that are frozen for ever: these are where it came from."""
        frozen = {name for name, _ in self._network.named_parameters()} - self.parameters.keys()
        return {name: tensor for name, tensor in self._network.state_dict().items() if name not in frozen}

    def put_back(self, changed: dict[str, Tensor], path: Path) -> None:
        """Put tensors that were stored in `path` into the network.

        Raises:
            FileFormatError: they are another network's.
        """
        wrong = self.changing().keys() - changed.keys() | changed.keys() - self._network.state_dict().keys()
        if wrong:
            raise FileFormatError(
                f"{path} does not fit the network: {min(wrong)}. Delete the folder to start this run again"
            )
        self._network.load_state_dict(changed, strict=False)

    def stored(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        found = {f"model/{name}": tensor for name, tensor in self.changing().items()}
        return found | {f"average/{name}": tensor for name, tensor in self._average.items()}

    def restore(self, model: dict[str, Tensor], average: dict[str, Tensor], path: Path) -> None:
        """Go back to what a checkpoint in `path` holds."""
        self.put_back(model, path)
        own = self._averaged_ones()
        for name, tensor in self._average.items():
            tensor.copy_(average.get(name, own[name]))
