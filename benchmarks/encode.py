"""Ridge regression of many responses, nested cross-validation: featx beside scikit-learn's RidgeCV in every fold.

    python benchmarks/encode.py [--images 10000] [--values 9216] [--responses 1000] [--folds 5]

Both choose one of the same ten penalties for each response by leaving one image out, and predict the same folds, in
float64. Printed are seconds, their ratio, and the largest difference of the correlations.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from featx.analysis.encoding import encode, grid_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--values", type=int, default=9_216)
    parser.add_argument("--responses", type=int, default=1_000)
    parser.add_argument("--folds", type=int, default=5)
    asked = parser.parse_args()
    generator = np.random.default_rng(0)
    factors = generator.normal(size=(asked.images, 200))  # features of photographs have few strong directions
    values = (
        factors @ generator.normal(size=(200, asked.values)) + generator.normal(size=(asked.images, asked.values))
    ).astype(np.float32)
    responses = factors @ generator.normal(size=(200, asked.responses)) + 10 * generator.normal(
        size=(asked.images, asked.responses)
    )
    held_out = np.zeros((asked.folds, asked.images), bool)
    for fold, (_, test) in enumerate(KFold(asked.folds, shuffle=True, random_state=0).split(values)):
        held_out[fold, test] = True
    alphas = grid_for(values)
    started = time.perf_counter()
    found = encode(values, responses, held_out, alphas, torch.device("cpu"))
    ours = time.perf_counter() - started
    print(f"featx encode  {ours:8.1f} s", flush=True)
    started, r = time.perf_counter(), []
    for out in held_out:
        model = RidgeCV(alphas, alpha_per_target=True).fit(values[~out].astype(np.float64), responses[~out])
        predicted, true = model.predict(values[out]), responses[out]
        first, second = predicted - predicted.mean(0), true - true.mean(0)
        r.append((first * second).sum(0) / np.linalg.norm(first, axis=0) / np.linalg.norm(second, axis=0))
    theirs = time.perf_counter() - started
    print(f"RidgeCV       {theirs:8.1f} s; ratio {theirs / ours:.2f}; largest difference of r "
          f"{np.abs(np.mean(r, 0) - found.r).max():.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
