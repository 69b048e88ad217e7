"""A part of a job, for machines that have no disk in common: `--shard 3/8`, and where its file lies."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featx.errors import UsageError
from featx.runtime.environment import ARRAY_VARIABLES, read_array_task

_HELP = "write I/N with I from 0 to N-1, auto/N to take I from the scheduler, or auto under Slurm's array or torchrun"


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0 on; `from_rank` if torchrun's number of the process said which."""

    index: int
    count: int
    from_rank: bool = field(default=False, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def rows(self, total: int, batch_size: int) -> range:
        """Its rows of `total`: neighbours, whole blocks, so that every image sits where it would in one file."""
        blocks = -(-total // batch_size)
        first, last = (blocks * part // self.count for part in (self.index, self.index + 1))
        return range(min(total, first * batch_size), min(total, last * batch_size))

    def describe(self, images: str, total: int) -> dict[str, Any]:
        """As plain values for a file's provenance.

        Args:
            images, total: digest and number of the images of all shards.
        """
        return {"index": self.index, "count": self.count, "images": images, "total": total}

    def path(self, output: Path) -> Path:
        """The name of its file.

        >>> str(Shard(3, 8).path(Path("out/photos.h5")))
        'out/photos.3-of-8.h5'
        """
        return output.with_name(f"{output.stem}.{self.index}-of-{self.count}{output.suffix}")


def parse_shard(text: str, variables: Mapping[str, str] = os.environ) -> Shard:
    """What `--shard TEXT` means.

    >>> parse_shard("3/8")
    Shard(index=3, count=8)
    >>> parse_shard("auto/8", {"JOB_COMPLETION_INDEX": "3"})
    Shard(index=3, count=8)

    Raises:
        UsageError: it is none, or the scheduler's variables are not there.
    """
    found = re.fullmatch(r"(\d+|auto)(?:/(\d+))?", text)
    if found is None or (found[1] != "auto" and found[2] is None):
        raise UsageError(f"--shard is {text!r}; {_HELP}")
    from_rank = False
    if found[1] == "auto":
        task = read_array_task(variables)
        if task is None:
            raise UsageError(f"--shard {text}: none of {', '.join(ARRAY_VARIABLES)} is set; {_HELP}")
        count = int(found[2]) if found[2] else task.count
        if count is None:
            raise UsageError(f"--shard auto: {task.variable} does not say of how many; write auto/N")
        index, from_rank = task.index, task.is_rank
    else:
        index, count = int(found[1]), int(found[2])
    if not 0 <= index < count:
        raise UsageError(f"--shard {text} is part {index} of {count}; {_HELP}")
    return Shard(index, count, from_rank)
