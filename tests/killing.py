"""Run one extraction again and again, killing it with SIGKILL at random moments, until it has finished.

    python tests/killing.py SOURCE OUTPUT KILLS SEED

The interpreter imports torch once and forks for every attempt, so that most moments fall into the work itself.
Prints one JSON object: how many attempts were killed, and how many rows were done after each.
"""

from __future__ import annotations

import contextlib
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


def attempt(source: str, output: Path, patience_s: float) -> bool:
    """Start the extraction in a child and kill it after a while; whether it had finished by then."""
    child = os.fork()
    if child == 0:
        extract_features(source, output, CONFIG)
        os._exit(0)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def reach(source: str, output: Path) -> float:
    """Seconds in which a run gets a little way into the work, on this machine with whatever else it does."""
    started, first = time.monotonic(), 0.0
    child = os.fork()
    if child == 0:
        extract_features(source, output, CONFIG)
        os._exit(0)
    while not os.waitpid(child, os.WNOHANG)[0]:
        half = partial_path(output)
        with contextlib.suppress(FileFormatError):  # not there yet, or finished just now
            if not first and (open_features(half, partial=True).status > 0).any():
                first = time.monotonic() - started
        time.sleep(0.01)
    output.unlink()
    return first + 0.15 * (time.monotonic() - started - first)


def main(source: str, output: Path, kills: int, seed: int) -> None:
    generator = random.Random(seed)
    done_after, killed = [], 0
    longest = reach(source, output.with_name("undisturbed.h5"))
    for _ in range(kills):
        if attempt(source, output, generator.uniform(0.05, longest)):
            break
        killed += 1
        if output.exists():  # the kill came between the rename and the end of the process
            break
        half = partial_path(output)
        done_after.append(int((open_features(half, partial=True).status > 0).sum()) if half.exists() else 0)
        if done_after[-1] == (done_after[-2] if killed > 1 else 0):  # the machine has become slower
            longest *= 1.05
    while not output.exists():
        attempt(source, output, 60)
    print(json.dumps({"killed": killed, "done_after": done_after}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
