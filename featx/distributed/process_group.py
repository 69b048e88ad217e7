"""One process, or one of several that torchrun has started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from featx.errors import FeatxError
from featx.runtime.environment import read_environment

_PATIENCE = timedelta(days=2)


_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise FeatxError where another process has ended: it has said why, or was killed."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _GONE):
            raise
        raise FeatxError("another process of this training has ended; what it has said is the reason") from error


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, total: int) -> slice:
        """Which of `total` things this process takes: neighbours, as evenly as can be."""
        return slice(self.rank * total // self.world_size, (self.rank + 1) * total // self.world_size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in each of them."""
        if self.world_size == 1:
            return values
        found = values.clone()
        with together():
            dist.all_reduce(found)
        return found

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in any process; they all learn the same."""
        if self.world_size == 1:
            return list(flags)
        found = torch.tensor([float(flag) for flag in flags])
        if dist.get_backend() == "nccl":
            found = found.cuda()
        with together():
            dist.all_reduce(found)
        return [value > 0 for value in found.tolist()]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in each of them."""
        if self.world_size == 1:
            return make()
        held = [make() if self.is_first else None]
        with together():
            dist.broadcast_object_list(held, src=0)
        return held[0]

    def wait(self) -> None:
        """Until all have come here."""
        if self.world_size > 1:
            with together():
                dist.barrier()


def join_process_group(device: torch.device) -> tuple[ProcessGroup, torch.device]:
    """Join what torchrun's variables describe; without them this is the only process.

    Returns:
        The processes, and this one's device.
    """
    environment = read_environment()
    if environment.world_size == 1:
        return ProcessGroup(), device
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Two processes on one GPU, as with --device cuda:0 for all of them, cannot talk through NCCL.
        enough = device.type == "cuda" and torch.cuda.device_count() >= environment.local_world_size
        alone = enough and device.index == environment.local_rank
        # The first prepares, extracts and fits for hours perhaps, while the others wait. torchrun sees a dead one.
        dist.init_process_group("nccl" if alone else "gloo", timeout=_PATIENCE)
    return ProcessGroup(dist.get_rank(), environment.world_size), device


def leave_process_group() -> None:
    """Let go of the others."""
    if dist.is_initialized():
        dist.destroy_process_group()
