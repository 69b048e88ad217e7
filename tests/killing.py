"""Run one extraction again and again, killing it with SIGKILL at random moments, until it has finished.

    python tests/killing.py SOURCE OUTPUT KILLS SEED

The interpreter imports torch once and forks for every attempt, so that most moments fall into the work itself.
Prints one JSON object: how many attempts were killed, and how many rows were done after each.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import featx.extraction.engine  # noqa: F401  # imported before the forks, not in each
from featx.commands.extract import extract_features
from featx.errors import FileFormatError
from featx.options.extraction import ExtractConfig
from featx.store.open import open_features
from featx.store.schema import partial_path

CONFIG = ExtractConfig(
    backbone="squeezenet1_1", layers="features.3,classifier.1", weights="random:0", device="cpu", batch_size=2,
    workers=2,
)  # fmt: skip


def done(output: Path) -> int:
    """Rows that are in the unfinished file; 0 before there is one."""
    try:
        return int((open_features(partial_path(output), partial=True).status > 0).sum())
    except FileFormatError:
        return 0


def attempt(source: str, output: Path, rows: int, patience_s: float) -> bool:
    """Start the extraction in a child and kill it a while after so many rows are done; whether it had finished."""
    child = os.fork()
    if child == 0:
        extract_features(source, output, CONFIG)
        os._exit(0)
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        if deadline is None and done(output) >= rows:
            deadline = time.monotonic() + patience_s
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main(source: str, output: Path, kills: int, seed: int) -> None:
    generator = random.Random(seed)
    done_after, killed = [], 0
    for number in range(kills):
        # Every third comes while the run is still being set up, the others among the blocks.
        is_early = number % 3 == 0
        rows = 0 if is_early else done(output) + generator.randint(1, 5)
        if attempt(source, output, rows, generator.uniform(0.0, 0.6 if is_early else 0.05)):
            break
        killed += 1
        if output.exists():  # the kill came between the rename and the end of the process
            break
        done_after.append(done(output))
    while not output.exists():
        attempt(source, output, 1_000_000, 0.0)
    print(json.dumps({"killed": killed, "done_after": done_after}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
