"""A fine-tuned network on disk: a folder that can be named wherever a backbone can."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import FileFormatError, UsageError
from featx.runtime import stored
from featx.runtime.stored import convert, read_json_file

FORMAT, SCHEMA = "featx run", 1
DESCRIPTION, WEIGHTS, TRAINED_ON = "config.json", "model.safetensors", "trained_on.bin"
REPORT = "report.json"
SNAPSHOTS = "snapshots"
_MOST_HASHES = 100_000_000


@dataclass(frozen=True)
class Run:
    """What a run's folder says of its network.

    Attributes:
        backbone: the network it was fine-tuned from.
        classes: what its logits mean, in order.
        preprocess: as `Preprocess.values`.
        plan: everything the result depends on.
        task: what its outputs are: logits of one class per image ("classes") or of several ("labels"), or numbers
            ("values").
    """

    folder: Path
    backbone: str
    classes: list[str]
    preprocess: dict[str, Any]
    plan: dict[str, Any]
    task: str = "classes"

    @property
    def published(self) -> str | None:
        """torchvision's name of the weights it started from, if they are torchvision's: what it was built for."""
        weights = self.plan.get("weights")
        name = weights.get("published") if isinstance(weights, dict) else None
        return name if isinstance(name, str) else None

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def weights_sha256(self) -> str:
        """Of its weights, as its report has it; empty in runs from before it was kept."""
        path = self.folder / REPORT
        found = read_json_file(path) if path.is_file() else {}
        return str(found.get("weights_sha256", "")) if isinstance(found, dict) else ""

    def refuse_unfinished(self) -> None:
        """Raise FileFormatError if the training has not come to its end."""
        if not self.weights.is_file():
            raise FileFormatError(f"{self.folder} is not finished; run the same featx finetune command again")


def trained_on(folder: Path) -> npt.NDArray[np.uint8] | None:
    """(n, 8) beginnings of the SHA-256 of the images a run was trained on; None if the run does not say."""
    try:
        with (folder / TRAINED_ON).open("rb") as file:
            content = np.frombuffer(file.read(_MOST_HASHES * 8), np.uint8)
    except FileNotFoundError:
        return None
    return content[: len(content) // 8 * 8].reshape(-1, 8)


def snapshot_path(folder: Path, epoch: int) -> Path:
    """Where a run keeps its weights at the end of an epoch, if it was asked to."""
    return folder / SNAPSHOTS / f"epoch-{epoch:06d}.safetensors"


def snapshots_of(folder: Path) -> dict[int, Path]:
    """epoch -> the weights that a run has kept at its end, in order."""
    found = sorted((folder / SNAPSHOTS).glob("epoch-*.safetensors"))
    return {int(path.stem.partition("-")[2]): path for path in found if path.stem.partition("-")[2].isdigit()}


def is_run(name: str) -> bool:
    """Whether a name is that of a run's folder."""
    return (Path(name) / DESCRIPTION).is_file()


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run's description; nothing in it can run.

    Raises:
        FileFormatError: damaged, or of another schema.
    """
    path = Path(folder) / DESCRIPTION
    found = read_json_file(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FileFormatError(f"{path} does not describe a run of featx finetune")
    if found.get("schema") != SCHEMA:
        raise FileFormatError(
            f"{path} has schema {str(found.get('schema'))[:20]!r}; this version of featx reads schema {SCHEMA}. "
            f"Use the version that wrote it"
        )
    convert(found, stored.Run, str(path))
    return Run(
        Path(folder),
        found["backbone"],
        found["classes"],
        found["preprocess"],
        found["plan"],
        found.get("task", "classes"),
    )


def refuse_other_tasks(backbone: str) -> None:
    """Raise UsageError for a run whose outputs are no probabilities of one class per image."""
    if is_run(backbone) and (task := read_run(backbone).task) != "classes":
        gives = "numbers" if task == "values" else "several classes of an image"
        raise UsageError(
            f"{backbone} gives {gives}; what decides for a class is shown of networks that give one class"
        )
