"""Peak memory of `featx extract` against the number of images.

    python benchmarks/memory.py PHOTOS [--images 1000 10000 100000] [--layers fc7]

Makes folders of hard links to the photos, so that N images need no more disk than a few, runs the command on each
and reads the kernel's high-water mark (VmHWM) of the process. Random weights.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import machine

from featx.runtime.text import table


def link_photos(photos: Path, folder: Path, count: int) -> None:
    """N names for the photos there are, in folders of a thousand."""
    sources = sorted(p for p in photos.rglob("*") if p.is_file())
    for index in range(count):
        place = folder / f"{index // 1000:04d}" / f"{index:06d}{sources[index % len(sources)].suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(sources[index % len(sources)], place)
        except OSError:  # another disk
            place.symlink_to(sources[index % len(sources)].resolve())


def peak_kilobytes(process: subprocess.Popen[bytes]) -> int:
    """The high-water mark of a process's resident memory, read until it ends."""
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
        peak = max([peak, *(int(line.split()[1]) for line in lines)])
        time.sleep(0.2)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--backbone", default="alexnet")
    parser.add_argument("--layers", default="fc7")
    options = parser.parse_args()
    rows = []
    for count in options.images:
        with tempfile.TemporaryDirectory() as scratch:
            link_photos(options.photos, Path(scratch) / "s", count)
            command = [sys.executable, "-m", "featx", "extract", f"{scratch}/s", "-b", options.backbone]
            command += ["-l", options.layers, "-w", "random:0", "-o", f"{scratch}/f.h5"]
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            peak = peak_kilobytes(process)
            if process.wait():
                sys.exit(f"{' '.join(command)} ended with {process.returncode}")
            rows.append([f"{count:,}", f"{peak * 1024 / 1e9:.2f} GB", f"{time.perf_counter() - started:.0f} s"])
            print(rows[-1], file=sys.stderr, flush=True)
    print(machine())
    print(f"{options.backbone} {options.layers}")
    print("\n".join(table(["images", "peak memory", "time"], rows)))


if __name__ == "__main__":
    main()
