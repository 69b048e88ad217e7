"""Several processes of one job, as a scheduler starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    count: int,
    *words: str,
    differently: dict[int, list[str]] | None = None,
    late: int | None = None,
    delay: float = 0.0,
) -> list[subprocess.Popen[str]]:
    """Processes as a scheduler starts them, without torchrun; one of them perhaps later than the others."""
    about = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    about |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    wait = (
        "import sys, time, runpy; time.sleep(float(sys.argv.pop(1))); runpy.run_module('featx', run_name='__main__')"
    )
    return [
        subprocess.Popen(
            [sys.executable, "-c", wait, str(delay), *words[2:]]
            if rank == late
            else [sys.executable, *words, *(differently or {}).get(rank, [])],
            env=os.environ | about | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(running: list[subprocess.Popen[str]]) -> tuple[list[int], list[str], list[str]]:
    said = [process.communicate(timeout=120) for process in running]
    return [p.returncode for p in running], [out for out, _ in said], [err for _, err in said]
