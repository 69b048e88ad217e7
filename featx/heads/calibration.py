"""Probabilities for an SVM, learnt from scores of images that the scoring heads were not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

KINDS = ("temperature", "platt")
_STEPS = 100


@dataclass(frozen=True)
class Calibration:
    """A map from decision values (n, K) to probabilities (n, K).

    temperature: softmax(slopes * scores), all slopes the same; the order of the classes stays.
    platt: sigmoid(slopes * scores + offsets) per class, then divided by their sum.

    Attributes:
        slopes, offsets: K numbers each.
    """

    kind: str
    slopes: list[float]
    offsets: list[float]

    def __call__(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        from scipy.special import expit, softmax

        logits = scores * np.array(self.slopes) + np.array(self.offsets)
        if self.kind == "temperature":
            return np.asarray(softmax(logits, axis=1))
        chances = expit(logits).clip(np.finfo(np.float64).tiny)
        return np.asarray(chances / chances.sum(axis=1, keepdims=True))


def calibrate(kind: str, scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> Calibration:
    """Learn a calibration from held-out scores (n, K) and labels (n,).

    Source:
        temperature: Guo et al., On calibration of modern neural networks, ICML 2017;
        platt: Platt, Probabilistic outputs for SVMs, 1999, by the Newton method of Lin, Lin & Weng, 2007.
    """
    precise: npt.NDArray[np.float64] = scores.astype(np.float64)
    count = scores.shape[1]
    if kind == "temperature":
        return Calibration(kind, [_temperature(precise, labels)] * count, [0.0] * count)
    pairs = [platt(precise[:, k], labels == k) for k in range(count)]
    return Calibration(kind, [slope for slope, _ in pairs], [offset for _, offset in pairs])


def _temperature(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.integer]) -> float:
    """The slope with the least mean -log softmax(slope * scores)[label], convex in it; by bisection."""
    own = scores[np.arange(len(labels)), labels]
    low, high = 0.0, 1.0
    while _slope_gradient(scores, own, high) < 0 and high < 1e6:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope_gradient(scores, own, middle) < 0 else (low, middle)
    return high


def _slope_gradient(scores: npt.NDArray[np.float64], own: npt.NDArray[np.float64], slope: float) -> float:
    """The derivative of the mean loss by the slope."""
    exponentials = np.exp(slope * (scores - scores.max(axis=1, keepdims=True)))
    expected = (exponentials * scores).sum(axis=1) / exponentials.sum(axis=1)
    return float((expected - own).mean())


def platt(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of a logistic regression of one variable, its targets drawn in from 0 and 1 as Platt does."""
    from scipy.special import expit

    count = int(positive.sum())
    targets = np.where(positive, (count + 1) / (count + 2), 1 / (len(scores) - count + 2))
    scale = max(float(np.abs(scores).max()), 1e-300)
    design = np.column_stack([scores / scale, np.ones_like(scores)])
    found = np.array([0.0, np.log((count + 1) / (len(scores) - count + 1))])
    for _ in range(_STEPS):
        gradient = design.T @ (expit(design @ found) - targets)
        chances = expit(design @ found)
        matrix = (design * (chances * (1 - chances))[:, None]).T @ design + 1e-12 * np.eye(2)
        step, length, before = np.linalg.solve(matrix, gradient), 1.0, _loss(design @ found, targets)
        while _loss(design @ (found - length * step), targets) > before and length > 1e-8:
            length /= 2
        found = found - length * step
        if np.abs(gradient).max() < 1e-9 * len(scores):
            break
    if found[0] < 0:  # the scores say the opposite of what they should: they say nothing
        share = float(targets.mean())
        return 0.0, float(np.log(share / (1 - share)))
    return float(found[0] / scale), float(found[1])


def _loss(logits: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> float:
    return float((np.logaddexp(0, logits) - targets * logits).sum())
