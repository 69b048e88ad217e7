"""Which of several processes this one is, as torchrun, Slurm or Kubernetes say; read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from featx.errors import UsageError


@dataclass(frozen=True)
class Environment:
    """This process among those that were started together; without torchrun's variables it is the only one.

    Attributes:
        rank, world_size: of all processes, rank 0 speaks for them.
        local_rank: on this machine; None if nobody said.
        local_world_size: processes that share this machine's cores; 1 if nobody said.
        master_addr, master_port: where rank 0 listens.
        has_agent_store: torchrun's agent hosts the key-value store, so rank 0 need not.
        restart_count: how often torchrun has started these processes again.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    has_agent_store: bool = False
    restart_count: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def read_environment(variables: Mapping[str, str] = os.environ) -> Environment:
    """What the variables of torchrun say.

    >>> read_environment({"RANK": "1", "WORLD_SIZE": "4"}).rank
    1

    Raises:
        UsageError: one of them is missing or is not a number.
    """
    world_size = _number(variables, "WORLD_SIZE", 1)
    if world_size <= 1:
        return Environment(local_world_size=max(1, _number(variables, "LOCAL_WORLD_SIZE", 1)))
    if "RANK" not in variables:
        raise UsageError(f"WORLD_SIZE is {world_size} but RANK is not set; start the processes with torchrun")
    rank = _number(variables, "RANK", 0)
    if not 0 <= rank < world_size:
        raise UsageError(f"RANK is {rank}; with WORLD_SIZE {world_size} it must be from 0 to {world_size - 1}")
    return Environment(
        rank=rank,
        world_size=world_size,
        local_rank=_number(variables, "LOCAL_RANK", 0) if "LOCAL_RANK" in variables else None,
        local_world_size=max(1, _number(variables, "LOCAL_WORLD_SIZE", 1)),
        master_addr=variables.get("MASTER_ADDR", "127.0.0.1"),
        master_port=_number(variables, "MASTER_PORT", 29500),
        # torch.distributed has no public name for these two; torchrun sets them for its own rendezvous.
        has_agent_store=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        restart_count=_number(variables, "TORCHELASTIC_RESTART_COUNT", 0),
    )


@dataclass(frozen=True)
class ArrayTask:
    """A task's index as a scheduler gives it, and of how many; None if the scheduler does not say.

    Attributes:
        variable: where the index was found.
    """

    variable: str
    index: int
    count: int | None

    @property
    def is_rank(self) -> bool:
        """The index is that of a process started by torchrun."""
        return self.variable == "RANK"


ARRAY_VARIABLES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "RANK")


def read_array_task(variables: Mapping[str, str] = os.environ) -> ArrayTask | None:
    """The task of a Slurm array, a Kubernetes Indexed Job or torchrun; None if it is none of these.

    >>> read_array_task({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "7"}).count
    8
    """
    name = next((name for name in ARRAY_VARIABLES if name in variables), None)
    if name is None:
        return None
    count = None
    # Not Slurm's own count of tasks: it is 1 when one task is submitted again alone.
    if name == "SLURM_ARRAY_TASK_ID" and "SLURM_ARRAY_TASK_MAX" in variables:
        count = _number(variables, "SLURM_ARRAY_TASK_MAX", 0) + 1
    if name == "RANK" and "WORLD_SIZE" in variables:
        count = _number(variables, "WORLD_SIZE", 1)
    return ArrayTask(name, _number(variables, name, 0), count)


def _number(variables: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(variables.get(name, default))
    except ValueError:
        raise UsageError(f"{name} is {variables[name]!r}; it must be a whole number") from None
