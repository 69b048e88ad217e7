"""featx against the usual hand-written script, side by side in one run: images per second from files to HDF5.

    python benchmarks/extract.py PHOTOS [--images 534] [--repeats 3] [--thingsvision PYTHON]

The usual script: ImageFolder, a DataLoader at the best of several worker counts, torchvision's
create_feature_extractor (which stops at the layer), h5py. Same network, same random weights, same layer, same
preprocessing, the script always in fp32; both from the construction of the network to the closed file, imports left
out. `--thingsvision` adds that package, run by the Python of the environment it is installed in. All take turns; the
median and the spread of all repeats are shown. PHOTOS is a folder of JPEGs; without one, pictures of noise are made,
which decode more slowly than photos do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import torch
from environment import machine
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import create_feature_extractor

from featx.commands.extract import extract_features
from featx.options.extraction import ExtractConfig
from featx.runtime.text import table
from featx.store.open import open_features

CASES = [
    ("alexnet", "fc7", "classifier.5", "fp32", 1),
    ("alexnet", "conv3", "features.7", "fp32", 1),
    ("vgg16", "fc7", "classifier.4", "fp32", 8),
    ("alexnet", "fc7", "classifier.5", "bf16", 1),
    ("alexnet", "fc7", "classifier.5", "fp32 --decode fast", 1),
    ("alexnet", "fc7", "classifier.5", "bf16 --decode fast", 1),
]  # network, layer, its node, featx's precision, images to leave out: all but one in so many
WORKER_COUNTS = (0, 1, 2, 4)
BATCH = 32


def collect_photos(photos: Path | None, folder: Path, count: int) -> None:
    """A class folder of `count` JPEGs."""
    (folder / "all").mkdir(parents=True)
    if photos is None:
        generator = np.random.default_rng(0)
        for index in range(count):
            values = generator.integers(0, 256, (375, 500, 3), np.uint8)
            Image.fromarray(values).save(folder / "all" / f"{index:05d}.jpg", quality=90)
        return
    sources = sorted(p for p in photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    for index in range(count):
        shutil.copy(sources[index % len(sources)], folder / "all" / f"{index:05d}.jpg")


def usual_script(
    source: Path, output: Path, name: str, node: str, workers: int, device: torch.device | str = "cpu"
) -> float:
    """Seconds the hand-written way takes."""
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = get_model(name, weights=None).eval()
    network = create_feature_extractor(network, [node]).to(device)
    on_gpu = torch.device(device).type == "cuda"
    dataset = ImageFolder(source, get_model_weights(name).DEFAULT.transforms())
    loader = DataLoader(dataset, batch_size=256 if on_gpu else BATCH, num_workers=workers, pin_memory=on_gpu)
    with h5py.File(output, "w") as file, torch.inference_mode():
        start = 0
        for pixels, _ in loader:
            rows = network(pixels.to(device, non_blocking=True))[node].cpu().numpy()
            if start == 0:
                target = file.create_dataset("features", (len(dataset), *rows.shape[1:]), "f4")
            target[start : start + len(rows)] = rows
            start += len(rows)
    return time.perf_counter() - started


def featx_itself(source: Path, output: Path, name: str, layer: str, precision: str) -> float:
    """Seconds featx takes."""
    output.unlink(missing_ok=True)
    precision, _, decode = precision.partition(" --decode ")
    config = ExtractConfig(
        backbone=name, layers=layer, weights="random:0", device="cpu", precision=precision, decode=decode or "cpu"
    )
    started = time.perf_counter()
    extract_features(source, output, config)
    return time.perf_counter() - started


def thingsvision(python: Path, source: Path, folder: Path, name: str, node: str) -> float:
    """Seconds thingsvision takes."""
    script = Path(__file__).with_name("with_thingsvision.py")
    with tempfile.TemporaryDirectory(dir=folder) as own:  # it adds to what it finds
        command = [str(python), str(script), str(source), own, name, node]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(next(line for line in said.splitlines() if line.startswith("seconds ")).split()[1])


def compare(
    source: Path, scratch: Path, case: tuple[str, str, str, str, int], repeats: int, python: Path | None
) -> list[str]:
    """One line of the table."""
    name, layer, node, precision, share = case
    count = len(list((source / "all").iterdir()))
    used = scratch / f"{name}-{layer}-{precision}"
    (used / "all").mkdir(parents=True)
    for path in sorted((source / "all").iterdir())[: count // share]:
        os.link(path, used / "all" / path.name)
    count //= share
    tries = {n: usual_script(used, scratch / "usual.h5", name, node, n) for n in WORKER_COUNTS}
    best = min(tries, key=lambda n: tries[n])
    ours, theirs, others = [], [], []
    for _ in range(repeats):
        theirs.append(count / usual_script(used, scratch / "usual.h5", name, node, best))
        if python is not None:
            others.append(count / thingsvision(python, used, scratch, name, node))
        ours.append(count / featx_itself(used, scratch / "ours.h5", name, layer, precision))
    with h5py.File(scratch / "usual.h5") as file:
        expected, found = file["features"][:], open_features(scratch / "ours.h5")[layer]
        difference = np.abs(expected - found).max() / np.abs(expected).max()
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [
        f"{name} {layer} {precision}",
        f"{count}",
        f"{statistics.median(theirs):.1f} ({best} workers)",
        f"{statistics.median(ours):.1f}",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} .. {max(ratios):.2f}",
        f"{statistics.median(a / b for a, b in zip(ours, others, strict=True)):.2f}" if others else "",
        f"{difference:.0e}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=534)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--thingsvision", type=Path, metavar="PYTHON")
    parser.add_argument("--only", default="", help="cases with these words in their name, as 'alexnet fc7 bf16'")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "photos"
        collect_photos(options.photos, source, options.images)
        words = options.only.lower().replace(",", " ").split()
        cases = [case for case in CASES if all(word in " ".join(case[:4]) for word in words)]
        rows = [compare(source, Path(scratch), case, options.repeats, options.thingsvision) for case in cases]
    print(machine())
    header = [
        "case",
        "images",
        "usual script, images/s",
        "featx, images/s",
        "ratio",
        "spread",
        "over thingsvision",
        "largest difference",
    ]
    print("\n".join(table(header, rows)))


if __name__ == "__main__":
    main()
