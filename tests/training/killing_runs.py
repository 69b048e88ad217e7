"""Start a fine-tuning again and again and kill it a little after each new checkpoint; for test_finetune.

    killing_runs.py SOURCE RUN CONFIG_AS_JSON

Children are forks of this process, which has loaded everything and computed nothing. Prints how many were killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import featx.training.job  # noqa: F401  # loaded once, for all children
from featx.commands.finetune import finetune_network
from featx.options.training import FinetuneConfig


def modified(run: Path) -> int:
    try:
        return (run / "checkpoint.safetensors").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def attempt(source: str, run: Path, config: FinetuneConfig, number: int) -> bool:
    """Whether the child came to its end before it was killed."""
    seen = modified(run)
    child = os.fork()
    if child == 0:
        finetune_network(source, run, config)
        os._exit(0)
    while modified(run) == seen:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    time.sleep(0.013 * (number % 7))
    os.kill(child, signal.SIGKILL if number % 4 else signal.SIGTERM)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    source, run, config = sys.argv[1], Path(sys.argv[2]), FinetuneConfig(**json.loads(sys.argv[3]))
    killed = 0
    while not attempt(source, run, config, killed):
        killed += 1
    print(killed)


if __name__ == "__main__":
    main()
