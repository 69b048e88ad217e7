"""A fine-tuned network on disk: a folder that can be named wherever a backbone can."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.errors import FileFormatError

FORMAT, SCHEMA = "featx run", 1
DESCRIPTION, WEIGHTS = "config.json", "model.safetensors"
_NEEDED = {"backbone": str, "classes": list, "preprocess": dict, "plan": dict}


@dataclass(frozen=True)
class Run:
    """What a run's folder says of its network.

    Attributes:
        backbone: the network it was fine-tuned from.
        classes: what its logits mean, in order.
        preprocess: as `Preprocess.values`.
        plan: everything the result depends on.
    """

    folder: Path
    backbone: str
    classes: list[str]
    preprocess: dict[str, Any]
    plan: dict[str, Any]

    @property
    def published(self) -> str | None:
        """torchvision's name of the weights it started from, if they are torchvision's: what it was built for."""
        weights = self.plan.get("weights")
        name = weights.get("published") if isinstance(weights, dict) else None
        return name if isinstance(name, str) else None

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def refuse_unfinished(self) -> None:
        """Raise FileFormatError if the training has not come to its end."""
        if not self.weights.is_file():
            raise FileFormatError(f"{self.folder} is not finished; run the same featx finetune command again")


def is_run(name: str) -> bool:
    """Whether a name is that of a run's folder."""
    return (Path(name) / DESCRIPTION).is_file()


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run's description; nothing in it can run.

    Raises:
        FileFormatError: damaged, or of another schema.
    """
    path = Path(folder) / DESCRIPTION
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FileFormatError(f"{path} does not describe a run of featx finetune")
    if found.get("schema") != SCHEMA:
        raise FileFormatError(
            f"{path} has schema {found.get('schema')!r}; this version of featx reads schema {SCHEMA}. "
            f"Use the version that wrote it: {found.get('plan', {}).get('featx', 'unknown')}"
        )
    for name, kind in _NEEDED.items():
        if not isinstance(found.get(name), kind):
            raise FileFormatError(f"{path}: its {name} is no {kind.__name__}")
    if len(found["classes"]) < 2 or not all(isinstance(name, str) for name in found["classes"]):
        raise FileFormatError(f"{path}: its classes are not two or more names")
    return Run(Path(folder), found["backbone"], found["classes"], found["preprocess"], found["plan"])
