"""Classes of images in memory, by a head or a fine-tuned network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.errors import UsageError
from featx.extraction.in_memory.threads import ON_ERROR, InMemory
from featx.extraction.model import load_model
from featx.heads.decision import Scores
from featx.status import Failure


@dataclass(frozen=True)
class Prediction:
    """What one image is.

    Attributes:
        label: the class with the highest score; classes joined by | of a multi-label head; None if the image failed.
        probability: of the label; None for an SVM without calibration and for several labels.
        scores: the best classes, best first, with their scores: decision values of an SVM, logits of a softmax.
    """

    label: str | None
    probability: float | None
    scores: dict[str, float]


class Predictor:
    """A head or a fine-tuned network, loaded once: images in, classes out; the same decisions as `featx predict`.

    Images are given as to an `Extractor`. It can be called by several threads at once.

    Args:
        model: a head (.safetensors), or the folder of a run of `featx finetune`.
        weights_file: where a head's network has its weights now, if they have moved.
        device, decode, batch_size: as the options of `featx predict`.
        workers: threads that decode and compute; by default one per core.
        on_error: "raise" an ImageError for images that cannot be used, or give "nan": no label, scores of NaN.

    Raises:
        FileFormatError: neither a head nor a finished run.
        WeightsMismatch: the network's weights are not those the head was fitted with.
        UsageError: `weights_file` for a run, which has its own weights.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        weights_file: str | None = None,
        device: str = "auto",
        decode: str = "cpu",
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: str = "raise",
    ) -> None:
        if on_error not in ON_ERROR:
            raise UsageError(f"on_error is {on_error!r}; it can be {' or '.join(map(repr, ON_ERROR))}")
        self._model, self._on_error = load_model(model), on_error
        if self._model.run is not None:
            self._model.run.refuse_unfinished()
        self._rule = self._model.rule
        recipe = self._model.recipe(device=device, batch_size=batch_size, decode=decode, weights_file=weights_file)
        self._network = InMemory(self._model.engine(recipe), workers=workers)

    @property
    def classes(self) -> list[str]:
        """The K classes, in the order of the scores."""
        return list(self._rule.classes)

    def scores(self, images: Any) -> Scores:
        """(N, K) decision values of an SVM, logits of a softmax, float64; NaN of images that failed."""
        return self._scores(images)[0]

    def predict(self, images: Any, top: int = 1) -> list[Prediction]:
        """What each image is, in their order.

        Args:
            top: how many classes are named in `scores`.

        Raises:
            ImageError: with on_error="raise", images that cannot be used.
        """
        if not 1 <= top <= len(self.classes):
            raise UsageError(f"top is {top}; it must be from 1 to {len(self.classes)}, the number of classes")
        scores, failures = self._scores(images)
        failed = {failure.row for failure in failures}
        known = np.nan_to_num(scores)
        names, probabilities = self._rule.names(known), self._rule.probabilities(known)
        best = self._rule.predicted(known)
        found = []
        for row, name in enumerate(names):
            if row in failed:
                found.append(Prediction(None, None, {}))
                continue
            probability = (
                None if probabilities is None or self._rule.multilabel else float(probabilities[row, best[row]])
            )
            found.append(Prediction(name, probability, self._best(scores[row], top)))
        return found

    def _best(self, scores: Scores, top: int) -> dict[str, float]:
        # Stable: of equal scores the first class comes first, as in the decision.
        order: Sequence[int] = np.argsort(-scores, kind="stable")[:top].tolist()
        return {self._rule.classes[k]: float(scores[k]) for k in order}

    def _scores(self, images: Any) -> tuple[Scores, list[Failure]]:
        found = self._network(images, on_error=self._on_error)
        return self._model.scores(found), found.failures

    def close(self) -> None:
        """End its threads and free the network."""
        self._network.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
