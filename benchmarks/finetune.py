"""featx finetune against the usual hand-written loop, side by side in one run: seconds per step, and all in all.

    python benchmarks/finetune.py PHOTOS [-b alexnet] [--images 320] [--epochs 4] [--repeats 2] [--only CASE]

The usual script: ImageFolder, a DataLoader at the best of several worker counts, torchvision's network with a new
last layer, the frozen layers without gradients, SGD with one parameter group per rate. featx trains the same layers
of the same random weights with the same batches of 64; where the first layers are frozen and nothing is drawn at
random it computes their output once. A step is the median of those after the first epoch; all in all is everything
from the photos to the trained weights, imports left out. PHOTOS is a folder of JPEGs; without one, pictures of noise
are made.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from environment import machine
from extract import collect_photos
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import get_model, get_model_weights

from featx.commands.finetune import finetune_network
from featx.options.training import FinetuneConfig
from featx.runtime.progress import Reporter
from featx.runtime.text import table

CASES = [
    ("fc8 alone", "conv1-fc7=0,fc8=1e-3", "none", ("classifier.6",)),
    ("fc6-fc8", "conv1-conv5=0,fc6-fc8=1e-3", "none", ("classifier",)),
    ("fc6-fc8, mirrored at random", "conv1-conv5=0,fc6-fc8=1e-3", "flip", ("classifier",)),
    ("everything", "*=1e-3", "none", ("",)),
]  # what is trained, featx's --lr and --augment, where its names begin in torchvision's AlexNet and VGG
CLASSES, BATCH = 10, 64
WORKER_COUNTS = (0, 1, 2)


def usual_script(source: Path, name: str, trained: tuple[str, ...], epochs: int, workers: int) -> tuple[float, float]:
    """Seconds of a step after the first epoch, and of everything."""
    started = time.perf_counter()
    torch.manual_seed(0)
    network = get_model(name, weights=None)
    network.classifier[6] = nn.Linear(network.classifier[6].in_features, CLASSES)
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(key.startswith(trained))
    network.train()
    own = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(own, lr=1e-3, momentum=0.9, weight_decay=5e-4)
    dataset = ImageFolder(source, get_model_weights(name).DEFAULT.transforms())
    loader = DataLoader(
        dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    times = []
    for _ in range(epochs):
        for pixels, labels in loader:
            optimiser.zero_grad()
            F.cross_entropy(network(pixels), labels).backward()
            optimiser.step()
            times.append(time.perf_counter())
    return _step(times, epochs), time.perf_counter() - started


class Steps(Reporter):
    """Notes when each step of the training ends."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._training = False

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self._training = what == "train"

    def advance(self, count: int) -> None:
        if self._training:
            self.times.append(time.perf_counter())


def featx_itself(source: Path, folder: Path, name: str, lr: str, augment: str, epochs: int) -> tuple[float, float]:
    """The same of featx."""
    clock, config = Steps(), FinetuneConfig(
        backbone=name, weights="random:0", lr=lr, epochs=epochs, batch_size=BATCH, init_head="random", val=0.0,
        augment=augment, schedule="constant", device="cpu",
    )  # fmt: skip
    started = time.perf_counter()
    finetune_network(source, folder, config, reporter=clock)
    return _step(clock.times, epochs), time.perf_counter() - started


def _step(times: list[float], epochs: int) -> float:
    """Seconds from one step to the next, of the epochs after the first; the median: a checkpoint is no step."""
    later = times[len(times) // epochs :]
    return statistics.median(after - before for before, after in itertools.pairwise(later))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("-b", "--backbone", default="alexnet")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", help="the case of this name alone")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "photos"
        collect_photos(options.photos, Path(scratch) / "some", options.images)
        for index, path in enumerate(sorted((Path(scratch) / "some" / "all").iterdir())):
            folder = source / f"class{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            os.link(path, folder / path.name)
        for case, lr, augment, trained in CASES:
            if options.only not in (None, case):
                continue
            tried = {n: usual_script(source, options.backbone, trained, 2, n)[0] for n in WORKER_COUNTS}
            workers = min(tried, key=lambda n: tried[n])
            found: list[tuple[float, float, float, float]] = []
            for repeat in range(options.repeats):
                folder = Path(scratch) / f"{case}-{repeat}"
                script = usual_script(source, options.backbone, trained, options.epochs, workers)
                ours = featx_itself(source, folder, options.backbone, lr, augment, options.epochs)
                found.append((*script, *ours))
            steps, wholes = [s[0] / s[2] for s in found], [s[1] / s[3] for s in found]
            middle = [statistics.median(column) for column in zip(*found, strict=True)]
            rows.append([
                case, f"{middle[0]:.3f} s ({workers} workers)", f"{middle[2]:.4f} s",
                f"{statistics.median(steps):.2f}", f"{min(steps):.2f} .. {max(steps):.2f}", f"{middle[1]:.1f} s",
                f"{middle[3]:.1f} s", f"{statistics.median(wholes):.2f}",
            ])  # fmt: skip
            print(rows[-1], flush=True)
    print(machine())
    print(f"{options.backbone}, {options.images} images, {options.epochs} epochs, steps of {BATCH}, fp32")
    header = ["trained", "script, a step", "featx", "ratio", "spread", "script, all in all", "featx", "ratio"]
    print("\n".join(table(header, rows)))


if __name__ == "__main__":
    main()
