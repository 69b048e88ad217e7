"""What other programs can follow a training by: TensorBoard's event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from featx.errors import UsageError
from featx.heads.quality.metrics import ValueMetrics
from featx.training.goal import Goal

FOLDER = "tensorboard"


class SilentLog:
    """Keeps nothing."""

    def write(self, entry: dict[str, Any], validated: tuple[Tensor, Tensor] | None) -> None:
        """An epoch has ended."""

    def close(self) -> None:
        """The training has ended."""


class TensorBoardLog(SilentLog):
    """The measures of every epoch, and the validation's of every class."""

    def __init__(self, folder: Path, names: list[str], goal: Goal) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError("--log tensorboard needs TensorBoard: pip install 'featx[tensorboard]'") from None
        self._writer = SummaryWriter(str(folder / FOLDER))
        self._names, self._goal = names, goal

    def write(self, entry: dict[str, Any], validated: tuple[Tensor, Tensor] | None) -> None:
        epoch = entry["epoch"]
        values = {name: value for name, value in entry.items() if name != "epoch" and value is not None}
        if validated is not None:
            found = self._goal.report(*validated, self._names)
            per_class = found.r2 if isinstance(found, ValueMetrics) else found.per_class
            values |= {f"val_class/{name}": value for name, value in per_class.items() if value is not None}
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def open_log(kind: str, folder: Path, names: list[str], goal: Goal) -> SilentLog:
    """The log that `--log` asks for.

    Raises:
        UsageError: it needs a package that is not there.
    """
    return TensorBoardLog(folder, names, goal) if kind == "tensorboard" else SilentLog()
