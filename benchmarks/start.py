"""Seconds from the start of `featx extract` to the first block of photos in the file.

python benchmarks/start.py PHOTOS [-b alexnet] [-l fc7] [--weights FILE] [--repeats 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import machine

COMMAND = """
import os, sys, time
from featx.cli import main
from featx.store import writer

own = writer.FeatureWriter.write_block

def timed(self, *args, **options):
    writer.FeatureWriter.write_block = own  # several threads write
    own(self, *args, **options)
    os.write(2, f"\\nfirst {time.time() - float(os.environ['STARTED'])}\\n".encode())

writer.FeatureWriter.write_block = timed
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-b", "--backbone", default="alexnet")
    parser.add_argument("-l", "--layers", default="fc7")
    parser.add_argument("-w", "--weights", default="random:0")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(machine())
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats + 1):
            words = ["extract", str(options.photos), "-b", options.backbone, "-l", options.layers]
            words += ["-w", options.weights, "-o", f"{folder}/{repeat}.h5"]
            clock = str(time.time())
            ran = subprocess.run(
                [sys.executable, "-c", COMMAND, *words],
                capture_output=True, text=True, check=True, env={**os.environ, "STARTED": clock},
            )  # fmt: skip
            found.append(next(float(line.split()[1]) for line in ran.stderr.splitlines() if line.startswith("first")))
    found = sorted(found[1:])  # the first reads everything from the disk
    print(
        f"{options.backbone} {options.layers}: {statistics.median(found):.2f} s ({found[0]:.2f} .. {found[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
