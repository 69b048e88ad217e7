"""Where a training stands, in one file that is there whole or not at all: safetensors and JSON, never pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from featx.errors import FileFormatError
from featx.runtime.files import replacing
from featx.runtime.stored import build, parse_json

METADATA = "featx checkpoint 1"


@dataclass
class Checkpoint:
    """Tensors and numbers of a training after some steps.

    No random states: every step draws from a generator of its own, made of the seed, the epoch and the step.

    Attributes:
        tensors: by name: model/..., optimiser/PARAMETER/..., average/....
        epoch, step: the next step to take; step counts within the epoch.
        sums: loss and counts of this epoch so far.
        history: one entry per finished epoch, before them one for the start if that counts.
    """

    tensors: dict[str, Tensor]
    epoch: int
    step: int
    sums: list[float]
    history: list[dict[str, Any]] = field(default_factory=list)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, by the rest of their names."""
        start = f"{prefix}/"
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def save(self, path: Path) -> None:
        """Write it; the file has its name when it is whole."""
        numbers = {"epoch": self.epoch, "step": self.step, "sums": self.sums, "history": self.history}
        save_tensors(path, self.tensors, {METADATA: json.dumps(numbers)})

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read it back.

        Raises:
            FileFormatError: damaged, or no checkpoint.
        """
        try:
            with safe_open(path, framework="pt") as file:
                described = (file.metadata() or {}).get(METADATA)
                if described is None:
                    raise FileFormatError(f"{path} is no checkpoint of this version of featx")
                numbers = parse_json(described, "its metadata")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            return build(cls, numbers, "its metadata", tensors=tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, FileFormatError) as error:
            raise FileFormatError(
                f"{path} cannot be read: {' '.join(str(error).split())}. Delete it to start this run again"
            ) from error


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors; the file has its name when it is whole."""
    # Contiguous and on the CPU: safetensors writes what lies in memory, whatever the strides say.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        save_file(plain, partial, metadata)
