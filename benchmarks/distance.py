"""What each faster way changes: distance from the reference per layer, and what it does to a linear SVM.

    python benchmarks/distance.py IMAGES [-b alexnet-mini] [-l conv1,conv3,conv5,fc6,fc7] [--device cuda]

IMAGES is a folder of classes. The reference is float32 from Pillow's pixels on the CPU. Maps are averaged. Cosine:
the smallest over the images, of features less their mean over the images, for the mean hides what tells images apart.
Difference: the largest, as a share of the layer's largest value. Accuracy: of an SVM at C = 10 on half of every
class, tested on the other half; beside it the share of test images that get the reference's class.
"""

from __future__ import annotations

import argparse
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from environment import machine

from featx.extraction.engine import Engine
from featx.extraction.pipeline import stream_features
from featx.extraction.recipe import Recipe
from featx.heads.normalize import Normalizer
from featx.heads.solver.solver import solve
from featx.heads.splits import split_by_share
from featx.images.manifest import Manifest
from featx.images.sources.scan import scan
from featx.runtime.text import table

Layers = dict[str, npt.NDArray[Any]]
WAYS: dict[str, dict[str, str]] = {
    "bf16": {"precision": "bf16"},
    "stored as float16": {"dtype": "float16"},
    "--decode fast": {"decode": "fast"},
    "--decode gpu": {"decode": "gpu"},  # without a GPU: libjpeg-turbo, and the resize that a GPU does
}
GPU_WAYS: dict[str, dict[str, str]] = {
    "float32 on the GPU": {},
    "tf32": {"precision": "tf32"},
    "fp16": {"precision": "fp16"},
    "--decode auto": {"decode": "auto"},
}


def features_of(manifest: Manifest, options: argparse.Namespace, way: dict[str, str], device: str) -> Layers:
    chosen = {key: value for key, value in way.items() if key != "decode"}
    recipe = Recipe.plan(
        backbone=options.backbone, layers=options.layers, weights=options.weights, pool="avg",
        device=device, **chosen,
    )  # fmt: skip
    recipe = replace(recipe, decode=way.get("decode", "cpu"))
    found = {spec.name: np.zeros((len(manifest), *spec.shape), np.float32) for spec in recipe.layer_specs()}

    def keep(block: Any, features: Layers) -> None:
        for name, values in features.items():
            found[name][block.first : block.first + len(values)] = values

    extractor = Engine(recipe)
    blocks = range(0, len(manifest), recipe.batch_size)
    stream_features(manifest, extractor, keep, blocks=blocks, workers=None, stop=threading.Event())
    extractor.close()
    return found


def classes_of(values: npt.NDArray[Any], labels: npt.NDArray[Any], train: Any, test: Any) -> npt.NDArray[np.intp]:
    """What an SVM on the training half says of the test half."""
    rows = Normalizer.fit("l2", values)(values)
    found = solve("svm", rows[train], labels[train], 10.0)
    return np.asarray((rows[test] @ found.weights.T + found.bias).argmax(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("-b", "--backbone", default="alexnet-mini")
    parser.add_argument("-w", "--weights", default="default")
    parser.add_argument("-l", "--layers", default="conv1,conv3,conv5,fc6,fc7")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    manifest = scan(options.images)
    labels = np.array(manifest.labels, np.int32)
    train, test = split_by_share(labels, 0.5, 0)
    reference = features_of(manifest, options, {}, "cpu")
    own = {name: classes_of(values, labels, train, test) for name, values in reference.items()}
    rows = [["reference", name, "1", "0", f"{(own[name] == labels[test]).mean():.1%}", "100%"] for name in reference]
    for title, way in {**(GPU_WAYS if torch.device(options.device).type == "cuda" else {}), **WAYS}.items():
        for name, values in features_of(manifest, options, way, options.device).items():
            expected = reference[name]
            mean = expected.mean(0)
            a, b = values - mean, expected - mean
            cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
            worst = np.abs(values - expected).max() / np.abs(expected).max()
            said = classes_of(values, labels, train, test)
            rows.append([
                title, name, f"{cosine.min():.5f}", f"{worst:.1e}", f"{(said == labels[test]).mean():.1%}",
                f"{(said == own[name]).mean():.1%}",
            ])  # fmt: skip
    print(f"{machine()}; {len(manifest):,} images, {options.backbone}")
    print("\n".join(table(["way", "layer", "least cosine", "largest difference", "SVM", "same class"], rows, left=2)))


if __name__ == "__main__":
    main()
