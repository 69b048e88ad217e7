"""What a network makes of an image when a part of it cannot be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.explain.subject import LOGITS, Subject

_AT_ONCE = 32
_TENSORS = ("probability", "log_odds", "predicted", "activation")


@dataclass(frozen=True)
class Occlusion:
    """Of one image, for every position (R, C) of the square.

    Attributes:
        tops, lefts: (R,) and (C,): where the square begins, in pixels of what the network sees.
        probability: (R, C) of the class.
        log_odds: (R, C) log p / (1 - p) of it: where the probability stays at 1, this still tells.
        predicted: (R, C) index of the most probable class.
        activation: (R, C) sum over the map that is strongest without occlusion.
        unit: which map that is.
        whole: probability, log-odds and activation without occlusion.
    """

    tops: list[int]
    lefts: list[int]
    probability: Tensor
    log_odds: Tensor
    predicted: Tensor
    activation: Tensor
    unit: int
    whole: tuple[float, float, float]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it, to be kept in a file."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Occlusion:
        """What `arrays` has made."""
        tensors = {name: torch.from_numpy(arrays[name]) for name in _TENSORS}
        probability, log_odds, activation = (float(value) for value in arrays["whole"])
        return cls(
            tops=arrays["tops"].tolist(), lefts=arrays["lefts"].tolist(), unit=int(arrays["unit"]),
            whole=(probability, log_odds, activation), **tensors,
        )  # fmt: skip


def occlude(
    subject: Subject,
    image: Tensor,
    label: int,
    layer: str,
    *,
    square: int,
    stride: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Occlusion:
    """Move a grey square over an image.

    Args:
        image: (3, S, S) normalised; grey is the mean colour, which is 0 there.
        label: the class to follow.
        layer: one of the subject's layers of maps.
        advance: is told of positions as they are done.

    Source:
        Zeiler & Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.2 and Figure 7.
    """
    starts = positions(subject.side, square, stride)
    with torch.inference_mode():
        outputs = subject.network(image[None])
        unit = int(outputs[layer][0].sum((1, 2)).argmax())
        whole = _measure(outputs, label, layer, unit)
        found = []
        places = [(top, left) for top in starts for left in starts]
        for first in range(0, len(places), _AT_ONCE):
            part = places[first : first + _AT_ONCE]
            images = image.repeat(len(part), 1, 1, 1)
            for row, (top, left) in enumerate(part):
                images[row, :, top : top + square, left : left + square] = 0
            found.append(_measure(subject.network(images), label, layer, unit))
            advance(len(part))
    probability, log_odds, predicted, activation = (
        torch.cat(parts).reshape(len(starts), len(starts)).cpu() for parts in zip(*found, strict=True)
    )
    return Occlusion(
        starts, starts, probability, log_odds, predicted, activation, unit,
        (float(whole[0]), float(whole[1]), float(whole[3])),
    )  # fmt: skip


def positions(side: int, square: int, stride: int) -> list[int]:
    """Where the square begins along one axis: every `stride` pixels, and last at the edge.

    >>> positions(10, 4, 4)
    [0, 4, 6]
    """
    last = max(0, side - square)
    return [*range(0, last, stride), last]


def _measure(outputs: dict[str, Tensor], label: int, layer: str, unit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probability, log-odds, most probable class, and the map's sum, (B,) each."""
    scores = outputs[LOGITS].double()
    log_p = scores.log_softmax(1)[:, label]
    others = scores.clone()
    others[:, label] = -torch.inf
    # log (1 - p) of the other classes' own sum: 1 - p itself is 0 where the network is certain.
    log_odds = scores[:, label] - others.logsumexp(1)
    return log_p.exp(), log_odds, scores.argmax(1), outputs[layer][:, unit].double().sum((1, 2))
