"""Heads: featx's solver beside scikit-learn's, one thread, the objective of both computed in float64 by neither.

    python benchmarks/heads.py                                   rows made up to look like fc7
    python benchmarks/heads.py photos.h5 -l fc7 -l pool5         real features, 30 images of every class

scikit-learn is timed at the loosest tolerance whose objective is within 1e-4 of the best that is known; of its grid
one fit for every C is timed on the rows of one fold, times the folds, plus the refit (--whole-grid: every fold, and
the accuracies of both compared). featx's grid is run as it is.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from environment import machine
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from featx.heads.normalize import Normalizer
from featx.heads.selection.folds import folds_of
from featx.heads.selection.search import fit_heads, grid_for
from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.solver import Solver, solve
from featx.heads.solver.targets import Targets
from featx.heads.splits import split_per_class
from featx.runtime.text import table
from featx.store.open import open_features

FOLDS = 5
TOLERANCES = {"svm": (1e-1, 1e-2, 1e-3, 1e-4), "softmax": (1e-3, 1e-4, 1e-5, 1e-6)}


def relu_like(rows: int, width: int, classes: int, zeros: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, D) with a share of zeros, and labels (n,): a few hundred factors, part of them the class's."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    mixing = generator.normal(size=(200, width)) / 200**0.5
    factors = 0.42 * generator.normal(size=(classes, 200))[labels] + generator.normal(size=(rows, 200))
    values = factors @ mixing + 0.3 * generator.normal(size=(rows, width))
    return np.maximum(values - np.quantile(values, zeros), 0).astype(np.float32), labels.astype(np.int32)


def objective(
    kind: str, values: np.ndarray, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray, c: float
) -> float:
    """Summed over the classes, in float64, by NumPy alone."""
    scores = values.astype(np.float64) @ weights.T + bias
    if kind == "svm":
        slack = np.maximum(0, 1 - np.where(labels[:, None] == np.arange(len(bias)), 1, -1) * scores)
        return float(0.5 * (weights**2).sum() + 0.5 * (bias**2).sum() + c * (slack**2).sum())
    scores -= scores.max(1, keepdims=True)
    lost = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(labels)), labels]
    return float(0.5 * (weights.astype(np.float64) ** 2).sum() + c * lost.sum())


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def scikit_learn(kind: str, c: float, tolerance: float, dual: bool | str = "auto") -> LinearSVC | LogisticRegression:
    if kind == "svm":
        return LinearSVC(C=c, tol=tolerance, random_state=0, max_iter=5000, dual=dual)
    return LogisticRegression(C=c, tol=tolerance, max_iter=5000)


def one_fit(name: str, kind: str, train: tuple, test: tuple, c: float) -> tuple[list[object], float]:
    """A line of the table, and the tolerance scikit-learn needed."""
    seconds, found = timed(lambda: solve(kind, *train, c))
    ours = objective(kind, *train, found.weights, found.bias, c)
    best, needed, theirs = ours, 0.0, None
    runs = []
    for tolerance in TOLERANCES[kind]:
        spent, model = timed(lambda tolerance=tolerance: scikit_learn(kind, c, tolerance).fit(*train))
        runs.append((spent, tolerance, objective(kind, *train, model.coef_, model.intercept_, c), model))
        best = min(best, runs[-1][2])
        if runs[-1][2] <= best * (1 + 1e-4):
            break
    theirs = runs[-1]
    needed = theirs[1]
    predicted = (test[0] @ found.weights.T.astype(np.float32) + found.bias).argmax(1)
    same = (predicted == theirs[3].predict(test[0])).mean()
    reached = "" if theirs[2] <= best * (1 + 1e-4) else f" (stops {theirs[2] / best - 1:.0e} high)"
    return [
        name, kind, f"{c:g}", f"{theirs[0]:.1f} s{reached}", f"{seconds:.2f} s", f"{theirs[0] / seconds:.1f}x",
        f"{ours / best - 1:.0e}", f"{same:.1%}", f"{int(found.certified.sum())}/{len(found.certified)}",
    ], needed  # fmt: skip


def path(name: str, train: tuple) -> list[object]:
    """A softmax at seven values of C, each started where the last one ended, in both libraries."""
    values, labels = train
    cs = grid_for(float(values.var(axis=0, dtype=np.float64).sum()))

    def ours() -> list[object]:
        blocks = Blocks(values, None, Normalizer("none"), torch.device("cpu"), 8 * values.size)
        solver = Solver(blocks, Targets("softmax", labels, int(labels.max()) + 1))
        found = []
        for c in cs:
            solver.at(c)
            found.append(solver.solution(solver.points(), c))
        return found

    seconds, solutions = timed(ours)
    for tolerance in TOLERANCES["softmax"]:
        model = LogisticRegression(tol=tolerance, max_iter=5000, warm_start=True)
        theirs, highest = 0.0, 0.0
        for c, solution in zip(cs, solutions, strict=True):
            spent, _ = timed(lambda c=c, model=model: model.set_params(C=c).fit(values, labels))
            theirs += spent
            own = objective("softmax", values, labels, solution.weights, solution.bias, c)
            highest = max(highest, objective("softmax", values, labels, model.coef_, model.intercept_, c) / own - 1)
        if highest <= 1e-4:
            break
    reached = "" if highest <= 1e-4 else f" (stops {highest:.0e} high)"
    proven = sum(bool(solution.certified.all()) for solution in solutions)
    return [
        name, "softmax", f"path of {len(cs)} C", f"{theirs:.1f} s{reached}", f"{seconds:.2f} s",
        f"{theirs / seconds:.1f}x", "", "", f"{proven}/{len(cs)}",
    ]  # fmt: skip


def grid(
    name: str,
    kind: str,
    train: tuple,
    tolerances: tuple[float, ...],
    dual: bool | str = "auto",
    *,
    whole: bool = False,
) -> list[object]:
    """A line of the table: every C and fold, and a refit.

    Args:
        whole: let scikit-learn fit every fold too, and compare the C that both choose and the accuracies of all.
    """
    values, labels = train
    names = [str(k) for k in range(labels.max() + 1)]
    held_out = folds_of(labels, FOLDS, 0, names)
    seconds, found = timed(
        lambda: fit_heads(
            kind, values, np.arange(len(values)), labels, names, c=None, folds=FOLDS, seed=0, normalize="none",
            device=torch.device("cpu"), memory_bytes=16 << 30,
        )
    )  # fmt: skip
    theirs, tolerance = 0.0, tolerances[1]
    accuracy = np.zeros((len(found.curve), FOLDS if whole else 1))
    for row, point in enumerate(found.curve):
        for fold, left_out in enumerate(held_out[: accuracy.shape[1]]):
            asked = scikit_learn(kind, point.c, tolerance, dual)
            spent, model = timed(
                lambda asked=asked, left_out=left_out: asked.fit(values[~left_out], labels[~left_out])
            )
            theirs += spent * FOLDS / accuracy.shape[1]
            accuracy[row, fold] = (model.predict(values[left_out]) == labels[left_out]).mean()
    chosen = f"C = {found.c:g}"
    if whole:
        apart = max(abs(point.accuracy - own) for point, own in zip(found.curve, accuracy.mean(1), strict=True))
        chosen += f", theirs {found.curve[int(accuracy.mean(1).argmax())].c:g}; accuracies within {apart:.4f}"
    theirs += timed(lambda: scikit_learn(kind, found.c, tolerance, dual).fit(values, labels))[0]
    fits = (FOLDS + 1) * len(found.curve) * (labels.max() + 1 if kind == "svm" else 1)
    return [
        name, kind, f"{len(found.curve)} C x {FOLDS} folds",
        f"{'' if whole else '~'}{theirs:.0f} s (tol {tolerance:g}{', dual' * (dual is True)})",
        f"{seconds:.1f} s",
        f"{theirs / seconds:.1f}x", chosen, "", f"{fits - len(found.uncertified)}/{fits}",
    ]  # fmt: skip


def cells(arguments: argparse.Namespace) -> list[tuple[str, tuple, tuple]]:
    """Name, training rows and labels, test rows and labels; normalised."""
    found = []
    if not arguments.features:
        n, width, classes = map(int, arguments.shape.split("x"))
        values, labels = relu_like(2 * n, width, classes, 0.78)
        for kind in arguments.normalize:
            normalizer = Normalizer.fit(kind, values[:n])
            rows = normalizer(values)
            found.append((f"made up {arguments.shape}, {kind}", (rows[:n], labels[:n]), (rows[n:], labels[n:])))
    else:
        features = open_features(arguments.features)
        for layer in arguments.layer:
            values, labels = features.xy(layer)
            train, test = split_per_class(labels, arguments.per_class, 0, features.classes)
            for kind in arguments.normalize:
                normalizer = Normalizer.fit(kind, values[train])
                name = f"{features.provenance['weights']['name']} {layer} {len(train)}x{values.shape[1]}, {kind}"
                found.append(
                    (name, (normalizer(values[train]), labels[train]), (normalizer(values[test]), labels[test]))
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", nargs="?")
    parser.add_argument("-l", "--layer", action="append", default=[])
    parser.add_argument("--normalize", action="append", default=[], choices=["none", "l2", "standard"])
    parser.add_argument("--per-class", type=int, default=30)
    parser.add_argument("--kind", action="append", default=[], choices=["svm", "softmax"])
    parser.add_argument("--decade", action="append", type=int, default=[], help="of C, from the grid's centre")
    parser.add_argument("--no-grid", action="store_true")
    parser.add_argument("--whole-grid", action="store_true", help="scikit-learn fits every fold too")
    parser.add_argument("--path", action="store_true", help="a softmax along C, without folds")
    parser.add_argument("--dual", action="store_true", help="the grid also beside LinearSVC(dual=True)")
    parser.add_argument(
        "--shape", default="3030x4096x101", help="of rows that are made up: images x values x classes"
    )
    arguments = parser.parse_args()
    arguments.normalize = arguments.normalize or ["l2", "standard"]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(machine() + ", one thread", flush=True)
    header = ["features", "head", "C", "scikit-learn", "featx", "ratio", "above best", "same class", "certified"]
    lines = []
    with threadpool_limits(1):
        solve("svm", *relu_like(300, 64, 3, 0.5), 1.0)  # what is loaded and allocated once
        for name, train, test in cells(arguments):
            variance = float(train[0].var(axis=0, dtype=np.float64).sum())
            for kind in arguments.kind or ["svm", "softmax"]:
                tolerance = 0.0
                for decade in arguments.decade or [0, 1]:
                    line, needed = one_fit(name, kind, train, test, grid_for(variance)[3 + decade])
                    tolerance = max(tolerance, needed)
                    lines.append(line)
                    print(table(header, [line])[1], flush=True)
                if not arguments.no_grid:
                    lines.append(grid(name, kind, train, TOLERANCES[kind], whole=arguments.whole_grid))
                    print(table(header, [lines[-1]])[1], flush=True)
                    if arguments.dual and kind == "svm":
                        lines.append(grid(name, kind, train, TOLERANCES[kind], dual=True))
                        print(table(header, [lines[-1]])[1], flush=True)
                if arguments.path and kind == "softmax":
                    lines.append(path(name, train))
                    print(table(header, [lines[-1]])[1], flush=True)
    print("\n".join(table(header, lines)))


if __name__ == "__main__":
    main()
