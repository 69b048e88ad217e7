"""Time and peak memory of an SVM on features with far more values than images, streamed from a features file.

    python benchmarks/heads_memory.py [--shape 3030x46656x101] [--memory 280M]

featx fits from the file within --memory; scikit-learn's LinearSVC gets the same rows as an array. Each runs in a
process of its own; memory is the most it has allocated above what it had after its imports (pages of the mapped file,
which the system takes back when it needs them, do not count).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
from environment import machine

WATCH = """
import json, sys, threading, time
def anonymous():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
seen = [0]
def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.02)
"""
OURS = """
import numpy as np, torch
torch.set_num_threads(1)
import h5py, sklearn.svm
from featx.heads.search import fit_heads
from featx.options import parse_bytes
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
with h5py.File(sys.argv[1]) as file:
    set_, labels = file["values"], file["labels"][:]
    values = np.memmap(sys.argv[1], np.float32, "r", set_.id.get_offset(), set_.shape)
start = time.perf_counter()
names = [str(k) for k in range(labels.max() + 1)]
found = fit_heads("svm", values, np.arange(len(values)), labels, names, c=1.0, folds=5, seed=0, normalize="l2",
                  device=torch.device("cpu"), memory_bytes=parse_bytes(sys.argv[2]))
proven = int(found.solution.certified.sum())
print(json.dumps([time.perf_counter() - start, max(seen) - before, float(found.solution.values.sum()), proven]))
"""
THEIRS = """
import numpy as np, torch
import h5py, sklearn.svm
from sklearn.preprocessing import normalize
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
with h5py.File(sys.argv[1]) as file:
    values, labels = normalize(file["values"][:], copy=False), file["labels"][:]
model = sklearn.svm.LinearSVC(C=1.0, tol=float(sys.argv[2]), random_state=0).fit(values, labels)
spent = time.perf_counter() - start
total = 0.0
for k, (weights, bias) in enumerate(zip(model.coef_, model.intercept_)):
    slack = np.maximum(0, 1 - np.where(labels == k, 1, -1) * (values @ weights.astype(np.float32) + bias))
    total += 0.5 * (weights @ weights + bias**2) + np.square(slack).sum(dtype=np.float64)
print(json.dumps([spent, max(seen) - before, total, 0]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="3030x46656x101")
    parser.add_argument("--memory", default="280M")
    arguments = parser.parse_args()
    n, width, classes = map(int, arguments.shape.split("x"))
    print(machine() + ", one thread", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        generator = np.random.default_rng(0)
        labels = np.arange(n) % classes
        factors = 0.42 * generator.normal(size=(classes, 200))[labels] + generator.normal(size=(n, 200))
        with h5py.File(path, "w") as file:
            values = file.create_dataset("values", (n, width), np.float32)
            for start in range(0, width, 4096):
                part = factors @ generator.normal(size=(200, min(4096, width - start))) / 200**0.5
                part += 0.3 * generator.normal(size=part.shape)
                values[:, start : start + 4096] = np.maximum(part - np.quantile(part, 0.78), 0)
            file["labels"] = labels.astype(np.int32)
        best = np.inf
        for name, program, argument in (
            ("featx", OURS, arguments.memory),
            ("LinearSVC, tol 0.01", THEIRS, "0.01"),
            ("LinearSVC, tol 0.0001", THEIRS, "0.0001"),
        ):
            ran = subprocess.run(
                [sys.executable, "-c", WATCH + program, str(path), argument],
                capture_output=True, text=True, check=True,
                env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            )  # fmt: skip
            seconds, peak, total, proven = json.loads(ran.stdout)
            best = min(best, total)
            print(
                f"{name}: {seconds:.1f} s, {peak / 1e6:.0f} MB beside {4 * n * width / 1e6:.0f} MB of features, "
                f"objective {total / best - 1:+.0e} of the best so far, {proven} of {classes} proven",
                flush=True,
            )


if __name__ == "__main__":
    main()
