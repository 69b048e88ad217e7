"""From scores to classes and probabilities: the one rule that every command, report and prediction uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.heads.calibration import Calibration
from featx.heads.labels import SEPARATOR

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DecisionRule:
    """What the scores of a classifier mean.

    The class of a row is the one with the highest score, calibrated or not; of equal scores the first.

    Attributes:
        kind: "svm"; "softmax" or "sigmoid", whose scores are logits, of one class or of several; "value", whose
            scores are numbers that were predicted.
        classes: K names.
        calibration: makes probabilities of an SVM's scores; None without one.
        multilabel: a row can be of several classes, those whose score is above 0.
    """

    kind: str
    classes: Sequence[str]
    calibration: Calibration | None = None
    multilabel: bool = False

    def probabilities(self, scores: npt.NDArray[Any]) -> Scores | None:
        """(n, K) of scores (n, K); None for an SVM without calibration."""
        if self.calibration is not None:
            return self.calibration(scores.astype(np.float64))
        if self.kind == "softmax":
            from scipy.special import softmax

            return np.asarray(softmax(scores.astype(np.float64), axis=1))
        if self.kind == "sigmoid":
            from scipy.special import expit

            return np.asarray(expit(scores.astype(np.float64)))
        return None

    def outputs(self, scores: npt.NDArray[Any]) -> Scores:
        """(n, K): probabilities where there are any, else the scores."""
        found = self.probabilities(scores)
        return np.asarray(scores, np.float64) if found is None else found

    def predicted(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """(n,) indices of the classes with the highest score."""
        return np.asarray(scores.argmax(axis=1))

    def names(self, scores: npt.NDArray[Any]) -> list[str]:
        """The class of each row of scores (n, K); its classes, or numbers, joined by | where there are several."""
        if self.kind == "value":
            return [SEPARATOR.join(f"{number:.6g}" for number in row) for row in scores]
        if self.multilabel:
            return [SEPARATOR.join(np.array(self.classes)[row > 0]) for row in scores]
        return [self.classes[best] for best in self.predicted(scores)]
