"""One process, or one of several that torchrun has started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    def share(self, total: int) -> slice:
        """Which of `total` things this process takes: neighbours, as evenly as can be."""
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in each of them."""
        if self.count == 1:
            return values
        found = values.clone()
        dist.all_reduce(found)
        return found

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in any process; they all learn the same."""
        if self.count == 1:
            return list(flags)
        found = torch.tensor([float(flag) for flag in flags])
        if dist.get_backend() == "nccl":
            found = found.cuda()
        dist.all_reduce(found)
        return [value > 0 for value in found.tolist()]

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            dist.barrier()


def join_processes(device: torch.device) -> tuple[Processes, torch.device]:
    """Join what torchrun's variables describe; without them this is the only process.

    Returns:
        The processes, and this one's device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes(), device
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Two processes on one GPU, as with --device cuda:0 for all of them, cannot talk through NCCL.
        enough = device.type == "cuda" and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", count))
        alone = enough and device.index == int(os.environ.get("LOCAL_RANK", "-1"))
        # The first prepares, extracts and fits for hours perhaps, while the others wait. torchrun sees a dead one.
        dist.init_process_group("nccl" if alone else "gloo", timeout=_PATIENCE)
    return Processes(dist.get_rank(), count), device


def leave_processes() -> None:
    """Let go of the others."""
    if dist.is_initialized():
        dist.destroy_process_group()
