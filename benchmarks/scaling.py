"""What grows with the number of images and of processes, apart from the computing itself; see docs/scaling.md.

    python benchmarks/scaling.py [--images 1000000]

The manifest of a list of N paths (time, memory), the skeleton of the file, taking up a file that is half done, and
how many blocks a second processes can claim from each other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import socket
import tempfile
import time
from pathlib import Path

from environment import machine
from store import plan

from featx.distributed.work_queue import WorkQueue
from featx.images.sources.scan import scan
from featx.runtime.environment import read_environment
from featx.runtime.text import table
from featx.store.writer import FeatureWriter


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def manifest(count: int, folder: Path) -> list[list[str]]:
    listed = folder / "list.txt"
    listed.write_text("".join(f"n{row % 1000:08d}/n{row % 1000:08d}_{row:08d}.JPEG\n" for row in range(count)))
    before, started = resident(), time.perf_counter()
    found = scan(listed)
    took, held = time.perf_counter() - started, resident() - before
    started = time.perf_counter()
    _ = found.digest
    hashed = time.perf_counter() - started
    return [
        ["manifest from a list", f"{1e6 * took / count:.2f} us an image", f"{held / count:.0f} bytes an image"],
        ["its hash", f"{1e6 * hashed / count:.2f} us an image", ""],
    ]


def skeleton(count: int, folder: Path) -> list[list[str]]:
    """Without features: the rows' own bytes are reserved, not written, and depend on the disk alone."""
    from dataclasses import replace

    whole = plan(count)
    small = replace(whole, layers=[replace(whole.layers[0], shape=(1,))])
    started = time.perf_counter()
    FeatureWriter.open(folder / "f.h5", small).close()
    made = time.perf_counter() - started
    started = time.perf_counter()
    with FeatureWriter.open(folder / "f.h5", small) as writer:
        blocks = len(writer.pending_blocks(32))
    taken_up = time.perf_counter() - started
    return [
        ["skeleton of the file", f"{1e6 * made / count:.2f} us an image", ""],
        [f"taking it up again ({blocks:,} blocks)", f"{1e6 * taken_up / count:.2f} us an image", ""],
    ]


def claim(rank: int, count: int, port: int, seconds: float, total: multiprocessing.Queue[int]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group = WorkQueue(read_environment())
    if rank == 0:
        group.announce("0" * 64, range(0, 1 << 25, 32))
    _, blocks = group.listen()
    claimed, until = 0, time.monotonic() + seconds
    for _ in group.claim(blocks):
        claimed += 1
        if time.monotonic() > until:
            break
    total.put(claimed)
    if rank == 0:
        time.sleep(1)  # the store is in this process


def claims(count: int, seconds: float = 3.0) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    total: multiprocessing.Queue[int] = multiprocessing.Queue()
    running = [multiprocessing.Process(target=claim, args=(r, count, port, seconds, total)) for r in range(count)]
    for process in running:
        process.start()
    claimed = sum(total.get() for _ in running)
    for process in running:
        process.join()
    return [f"claims of {count} processes", f"{claimed / seconds:,.0f} blocks a second", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = manifest(options.images, Path(scratch)) + skeleton(options.images, Path(scratch))
    rows += [claims(count) for count in (1, 2, 4)]
    print(machine())
    print("\n".join(table(["what", "cost", "memory"], rows)))


if __name__ == "__main__":
    main()
