"""Label errors: `featx suspects` beside cleanlab on scikit-learn's held-out probabilities of the same features.

    python benchmarks/suspects.py FEATURES.h5 [-l LAYER] [--share 0.05] [--seeds 3]

Exchanges a share of the labels of the training images (or of all, where the file has no split called train) at random
and ranks all images by the probability of their label. Printed are the precision at as many images as were exchanged,
the area under the ROC curve, and seconds. cleanlab needs `pip install cleanlab`.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from cleanlab.rank import get_label_quality_scores
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx.analysis.suspects.labels import doubts
from featx.heads.selection.search import fit_heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features")
    parser.add_argument("-l", "--layer")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # scikit-learn's of iterations
    features = featx.open_features(asked.features)
    layer = features.only_layer(asked.layer)
    values = features[layer].reshape(len(features), -1)
    rows = features.usable("train" if "train" in features.splits else None)
    true, classes = features.labels[rows].astype(np.int32), list(features.classes)
    print(f"{layer}: {len(rows):,} images x {values.shape[1]:,}, {len(classes)} classes, {asked.share:.0%} exchanged")
    for seed in range(asked.seeds):
        generator = np.random.default_rng(seed)
        wrong = generator.permutation(len(rows))[: round(asked.share * len(rows))]
        given = true.copy()
        given[wrong] = (true[wrong] + generator.integers(1, len(classes), len(wrong))) % len(classes)
        is_wrong = np.isin(np.arange(len(rows)), wrong)

        def say(
            name: str, quality: np.ndarray, seconds: float, is_wrong: np.ndarray = is_wrong, seed: int = seed
        ) -> None:
            first = np.argsort(quality, kind="stable")[: is_wrong.sum()]
            print(f"seed {seed}  {name:42s} precision at {is_wrong.sum()}: {is_wrong[first].mean():.3f}  "
                  f"AUC {roc_auc_score(is_wrong, -quality):.4f}  {seconds:6.1f} s")  # fmt: skip

        started = time.perf_counter()
        found = fit_heads(
            "softmax", values, rows, given, classes, c=None, folds=5, seed=0, normalize="l2",
            device=torch.device("cpu"), memory_bytes=4 << 30, keep_scores=True,
        )  # fmt: skip
        quality = doubts(softmax(found.held_out_scores.astype(float), axis=1), given).confidence
        say("featx suspects (C searched)", quality, time.perf_counter() - started)
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        models = {
            "cleanlab, LogisticRegression": LogisticRegression(max_iter=400),
            "cleanlab, standardised": make_pipeline(StandardScaler(), LogisticRegression(max_iter=400)),
        }
        for name, model in models.items():
            started = time.perf_counter()
            probabilities = cross_val_predict(model, values[rows], given, cv=folds, method="predict_proba")
            quality = get_label_quality_scores(given, probabilities)
            say(name, quality, time.perf_counter() - started)


if __name__ == "__main__":
    main()
