"""featx.LinearSVMCV beside GridSearchCV(LinearSVC()) on the same rows, folds and values of C.

    python benchmarks/estimators_cv.py [--images 3030] [--values 4096] [--classes 101] [--folds 5] [--whole]

One fold for every C is timed, times the folds, plus the refit; --whole runs GridSearchCV itself. Both use all cores:
GridSearchCV by a process for each, which is taken to be perfect.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

import numpy as np
from heads import relu_like
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

import featx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("images", 3030), ("values", 4096), ("classes", 101), ("folds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--whole", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    values, labels = relu_like(asked.images, asked.values, asked.classes, zeros=0.7)
    values = normalize(values).astype(np.float32)
    folds = StratifiedKFold(asked.folds, shuffle=True, random_state=0)
    started = time.perf_counter()
    ours = featx.LinearSVMCV(cv=folds).fit(values, labels)
    seconds = time.perf_counter() - started
    print(f"LinearSVMCV   {seconds:8.1f} s, C = {ours.C_:g} of {', '.join(f'{c:g}' for c in ours.Cs_)}", flush=True)
    cores = os.cpu_count() or 1
    if asked.whole:
        started = time.perf_counter()
        theirs = GridSearchCV(LinearSVC(), {"C": ours.Cs_}, cv=folds, n_jobs=cores).fit(values, labels)
        total = time.perf_counter() - started
        print(f"GridSearchCV  {total:8.1f} s, C = {theirs.best_params_['C']:g}")
    else:
        train = next(folds.split(values, labels))[0]
        total = 0.0
        for c in ours.Cs_:
            started = time.perf_counter()
            LinearSVC(C=c).fit(values[train], labels[train])
            one = time.perf_counter() - started
            total += asked.folds * one / cores
            print(f"  LinearSVC, one fold, C = {c:g}: {one:.1f} s", flush=True)
        started = time.perf_counter()
        LinearSVC(C=ours.C_).fit(values, labels)
        total += time.perf_counter() - started
        print(f"GridSearchCV  {total:8.1f} s, from one fold for every C on {cores} cores")
    print(f"ratio {total / seconds:.1f}")


if __name__ == "__main__":
    main()
