"""What storing features costs: microseconds per row of one thread, for featx's writer and for h5py's layouts.

    python benchmarks/store.py [--rows 4000]

Rows of AlexNet's fc7 (4096 values, 80 % zeros, as trained networks give) in blocks of 32, to the disk of the
temporary folder; then all rows read, and single rows at random. featx's writer flushes every block to the disk
(fdatasync) before its rows count as done; h5py's rows are lost with the process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from environment import machine

from featx.runtime.text import table
from featx.store.open import open_features
from featx.store.schema import FilePlan, LayerSpec
from featx.store.writer import FeatureWriter

BLOCK, WIDTH = 32, 4096
LAYOUTS: dict[str, dict[str, Any]] = {
    "h5py, contiguous": {},
    "h5py, chunks of a block": {"chunks": (BLOCK, WIDTH)},
    "h5py, chunks, lzf": {"chunks": (BLOCK, WIDTH), "compression": "lzf"},
    "h5py, chunks, gzip-4": {"chunks": (BLOCK, WIDTH), "compression": "gzip"},
}


def plan(count: int) -> FilePlan:
    layer = LayerSpec("fc7", "classifier.5", "after", "none", (WIDTH,), "float32")
    made = {"backbone": "alexnet", "weights": {"name": "", "spec": "", "url": None, "sha256": ""}, "preprocess": {},
            "exif": False, "pooling": "none", "precision": "fp32", "dtype": "float32", "batch_size": BLOCK,
            "layers": {"fc7": {"node": "classifier.5", "relu": "after"}}, "command": "", "images": "", "request": {},
            "source": {}, "hardware": "", "versions": {}}  # fmt: skip
    paths = [f"{row:08d}.jpg".encode() for row in range(count)]
    return FilePlan(paths, [-1] * count, [], [-1] * count, [], [layer], made)


def by_featx(path: Path, rows: np.ndarray) -> None:
    with FeatureWriter.open(path, plan(len(rows))) as writer:
        for first in range(0, len(rows), BLOCK):
            block = rows[first : first + BLOCK]
            count = len(block)
            writer.write_block(
                first, {"fc7": block}, status=np.ones(count, np.uint8), sha256=np.zeros((count, 32), np.uint8),
                orientation=np.ones(count, np.uint8), reasons={},
            )  # fmt: skip
        writer.finish()


def by_h5py(path: Path, rows: np.ndarray, layout: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        target = file.create_dataset("features/fc7", rows.shape, "f4", **layout)
        for first in range(0, len(rows), BLOCK):
            target[first : first + BLOCK] = rows[first : first + BLOCK]


def measure(name: str, folder: Path, rows: np.ndarray, repeats: int) -> list[str]:
    path, at_random = folder / "f.h5", np.random.default_rng(1).integers(0, len(rows), 300)
    write, read, single = [], [], []
    for _ in range(repeats):
        path.unlink(missing_ok=True)
        started = time.perf_counter()
        by_featx(path, rows) if name == "featx" else by_h5py(path, rows, LAYOUTS[name])
        write.append(time.perf_counter() - started)
        if name == "featx":
            values: Any = open_features(path)["fc7"]
        else:
            values = h5py.File(path)["features/fc7"]
        started = time.perf_counter()
        assert np.array_equal(values[:], rows)
        read.append(time.perf_counter() - started)
        started = time.perf_counter()
        for row in at_random:
            np.array(values[row])
        single.append((time.perf_counter() - started) / len(at_random))
    size = path.stat().st_size / rows.nbytes
    per_row = [1e6 * statistics.median(took) / len(rows) for took in (write, read)]
    return [name, f"{per_row[0]:.0f}", f"{size:.2f}", f"{per_row[1]:.0f}", f"{1e6 * statistics.median(single):.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = np.random.default_rng(0).normal(-0.84, 1, (options.rows, WIDTH)).astype(np.float32).clip(min=0)
    with tempfile.TemporaryDirectory() as scratch:
        found = [measure(name, Path(scratch), rows, options.repeats) for name in ("featx", *LAYOUTS)]
    print(machine())
    print(f"{(rows == 0).mean():.0%} zeros")
    header = ["way", "write, us a row", "size", "read all, us a row", "one row, us"]
    print("\n".join(table(header, found)))


if __name__ == "__main__":
    main()
