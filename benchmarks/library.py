"""featx.Extractor beside `featx extract`, in one run, and what one image at a time costs.

    python benchmarks/library.py PHOTOS [--images 1000] [--turns 3]

The command's time is that of its own report, without start-up; the library's is one call with the bytes of the same
files in memory. Then single images: CPU milliseconds of decoding, of the network and of the rest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from environment import machine

import featx
from featx.images.decode import decode
from featx.images.preprocess import Preprocess
from featx.images.sources.scan import scan

WEIGHTS = "random:0"


def by_command(folder: Path, output: Path) -> float:
    command = [sys.executable, "-m", "featx", "extract", str(folder), "-o", str(output), "-b", "alexnet", "-l", "fc7"]
    done = subprocess.run(
        [*command, "-w", WEIGHTS, "--device", "cpu", "--json"],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return float(json.loads(done.stdout)["images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    manifest = scan(str(arguments.photos))
    paths = [manifest.full_path(row) for row in range(len(manifest))]
    contents = [path.read_bytes() for path in itertools.islice(itertools.cycle(paths), arguments.images)]
    print(f"{machine()}; {len(contents):,} images, {len(paths):,} of them different")

    rates: dict[str, list[float]] = {"command": [], "library": []}
    with (
        tempfile.TemporaryDirectory() as scratch,
        featx.Extractor("alexnet", layers="fc7", weights=WEIGHTS, device="cpu") as extractor,
    ):
        folder = Path(scratch, "images")
        folder.mkdir()
        for place, content in enumerate(contents):
            Path(folder, f"{place:06d}.jpg").write_bytes(content)
        extractor.load()
        extractor(contents[:32])
        for turn in range(arguments.turns):
            output = Path(scratch, f"{turn}.h5")
            rates["command"].append(by_command(folder, output))
            started = time.perf_counter()
            batch = extractor(contents)
            rates["library"].append(len(contents) / (time.perf_counter() - started))
        same = np.array_equal(featx.open_features(output)["fc7"], batch["fc7"])
        for name, found in rates.items():
            spread = f"{min(found):.1f} .. {max(found):.1f}"
            print(f"{name}: {statistics.median(found):.1f} images/s ({spread})")
        print(f"library / command: {statistics.median(rates['library']) / statistics.median(rates['command']):.2f}")
        print(f"the same bits: {same}")

        preprocess = Preprocess(**extractor.recipe["preprocess"])
        torch.set_num_threads(1)  # as in the extractor's own threads
        parts: dict[str, list[float]] = {"decode": [], "network": [], "whole": []}
        engine = extractor._ready().engine
        for content in contents[:100]:
            started = time.process_time()
            pixels = preprocess.pixels(decode(content, exif=False)[0])
            parts["decode"].append(time.process_time() - started)
            started = time.process_time()
            engine(pixels[None])
            parts["network"].append(time.process_time() - started)
            started = time.process_time()
            extractor([content])
            parts["whole"].append(time.process_time() - started)
        middle = {name: 1000 * statistics.median(found) for name, found in parts.items()}
        rest = middle["whole"] - middle["decode"] - middle["network"]
        print(
            f"one image at a time, CPU ms: decode {middle['decode']:.1f}, network {middle['network']:.1f}, "
            f"rest {rest:.1f}, together {middle['whole']:.1f}"
        )


if __name__ == "__main__":
    main()
