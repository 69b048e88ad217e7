"""What it costs to see what a network sees, beside what it is made of.

    python benchmarks/explain.py PHOTOS NET LAYER [--weights FILE] [--map 8677]

PHOTOS is a folder of photographs. `show top` of 16 units beside the extraction of the layer, whole commands in turns;
a gradient saliency map beside a forward pass; t-SNE of 512 values of some thousand images in 101 classes beside
scikit-learn's, with the trustworthiness of both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from environment import machine
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from featx.analysis.embedding import principal_components, trustworthiness, tsne
from featx.explain.saliency import saliency
from featx.explain.subject import load_subject
from featx.runtime.text import table

WIDTH, CLASSES, UNITS, ROUNDS = 512, 101, 16, 3


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def commands(photos: Path, net: str, layer: str, weights: str) -> list[list[str]]:
    """Times of an extraction and of `show top`, in turns."""
    words = [sys.executable, "-m", "featx"]
    about = [str(photos), "-b", net, "-w", weights, "-l", layer]
    times: dict[str, list[float]] = {"extract --pool max": [], f"show top, {UNITS} units": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            ways = (
                [*words, "extract", *about, "--pool", "max", "-o", f"{folder}/{number}.h5"],
                [*words, "show", "top", *about, "--units", f"random:{UNITS}", "-o", f"{folder}/{number}"],
            )
            for name, command in zip(times, ways, strict=True):
                times[name].append(
                    seconds(lambda command=command: subprocess.run(command, check=True, capture_output=True))
                )
    middles = {name: statistics.median(values) for name, values in times.items()}
    least = next(iter(middles.values()))
    return [[name, f"{value:.1f} s", f"{value / least:.2f}"] for name, value in middles.items()]


def gradients(net: str, weights: str) -> list[list[str]]:
    """A gradient map beside a forward pass of the same network, 16 images at once."""
    subject = load_subject(net, weights=weights)
    inputs = torch.randn(16, 3, subject.side, subject.side, device=subject.device)
    labels = torch.zeros(16, dtype=torch.long, device=subject.device)
    times: dict[str, list[float]] = {"forward": [], "gradient": []}
    for _ in range(ROUNDS + 1):  # the first is for warming up
        with torch.inference_mode():
            times["forward"].append(seconds(lambda: subject.logits(inputs).cpu()))
        times["gradient"].append(seconds(saliency(subject, inputs, labels, "gradient").maps.cpu))
    forward, gradient = (statistics.median(values[1:]) for values in times.values())
    return [["forward pass", f"{1e3 * forward / 16:.1f} ms", "1.00"],
            ["gradient saliency", f"{1e3 * gradient / 16:.1f} ms", f"{gradient / forward:.2f}"]]  # fmt: skip


def maps(count: int) -> list[list[str]]:
    """t-SNE of the same principal components by both."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLASSES, WIDTH))
    values = np.maximum(
        0, centres[generator.integers(0, CLASSES, count)] + 1.5 * generator.normal(size=(count, WIDTH))
    )
    rows = generator.choice(count, min(count, 1000), replace=False)
    reduced = PCA(50, random_state=0).fit_transform(values)
    found = []
    for name, embed in (("featx (openTSNE)", _by_featx), ("scikit-learn", _by_scikit_learn)):
        started = time.perf_counter()
        points = np.asarray(embed(values), np.float64)
        took = time.perf_counter() - started
        found.append([name, f"{took:.1f} s", f"{trustworthiness(reduced, points, 15, rows):.3f}"])
    return found


def _by_featx(values: np.ndarray) -> np.ndarray:
    return tsne(principal_components(values, 50, 0), perplexity=30, seed=0)


def _by_scikit_learn(values: np.ndarray) -> np.ndarray:
    return TSNE(random_state=0, init="pca").fit_transform(PCA(50, random_state=0).fit_transform(values))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("net")
    parser.add_argument("layer")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--map", type=int, default=8677)
    given = parser.parse_args()
    print(machine())
    print(
        "\n".join(
            table(["command", "median", "ratio"], commands(given.photos, given.net, given.layer, given.weights))
        )
    )
    print("\n".join(table(["an image", "median", "ratio"], gradients(given.net, given.weights))))
    print("\n".join(table([f"map of {given.map:,}", "time", "trustworthiness"], maps(given.map))))


if __name__ == "__main__":
    main()
