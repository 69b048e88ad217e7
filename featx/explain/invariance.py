"""What a network makes of an image that is moved, enlarged or turned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from featx.explain.subject import LOGITS, Subject

_AT_ONCE = 32
TRANSLATED = 60 / 224  # of the side: 60 pixels in the paper
LARGEST = 1.8
KINDS = ("translation", "scale", "rotation")
UNITS = {"translation": "pixels downwards", "scale": "times", "rotation": "degrees"}


@dataclass(frozen=True)
class Curves:
    """Of one image and one kind of transformation, at P places.

    Attributes:
        places: (P,) pixels downwards, times, or degrees counterclockwise.
        distances: layer -> (P,) euclidean, between the features of the image and of what was made of it.
        probability: (P,) of the class.
    """

    places: npt.NDArray[np.float64]
    distances: dict[str, npt.NDArray[np.float64]]
    probability: npt.NDArray[np.float64]

    def arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """All of it, to be kept in a file."""
        named = {f"distances {layer}": values for layer, values in self.distances.items()}
        return {"places": self.places, "probability": self.probability, **named}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[np.float64]]) -> Curves:
        """What `arrays` has made."""
        begin = "distances "
        named = {name[len(begin) :]: values for name, values in arrays.items() if name.startswith(begin)}
        return cls(arrays["places"], named, arrays["probability"])


def places_of(kind: str, side: int) -> npt.NDArray[np.float64]:
    """Where the curves are measured: -60 to 60 pixels of 224, 1 to 1.8 times, 0 to 350 degrees.

    >>> places_of("rotation", 224)[[0, 1, -1]]
    array([  0.,  10., 350.])
    """
    if kind == "translation":
        most = round(TRANSLATED * side)
        step = max(1, round(most / 12))
        return np.arange(-(most // step), most // step + 1, dtype=np.float64) * step
    if kind == "scale":
        return np.asarray(np.linspace(1, LARGEST, 17), np.float64)
    return np.arange(0.0, 360.0, 10.0)


def transformed(images: Tensor, kind: str, place: float, fill: str) -> Tensor:
    """(N, 3, S, S) moved, enlarged about the middle or turned about it; bilinear.

    Args:
        images: normalised: 0 is the mean colour.
        fill: what comes in from outside: "edge", the nearest pixel of the image, or "mean".
    """
    if place == (1.0 if kind == "scale" else 0.0):
        return images
    matrix = {
        "translation": [[1.0, 0.0, 0.0], [0.0, 1.0, -2.0 * place / images.shape[-1]]],
        "scale": [[1 / place, 0.0, 0.0], [0.0, 1 / place, 0.0]],
        "rotation": _turn(math.radians(place)),
    }[kind]
    grid = F.affine_grid(
        torch.tensor(matrix, dtype=images.dtype, device=images.device).repeat(len(images), 1, 1),
        list(images.shape),
        align_corners=False,
    )
    padding = "border" if fill == "edge" else "zeros"
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _turn(angle: float) -> list[list[float]]:
    """Where each place of the turned image comes from; y grows downwards."""
    return [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]


def curves(
    subject: Subject,
    image: Tensor,
    label: int,
    layers: list[str],
    kind: str,
    *,
    fill: str = "edge",
    advance: Callable[[int], None] = lambda done: None,
) -> Curves:
    """How far features move, and what becomes of a class's probability.

    Args:
        image: (3, S, S) normalised.
        layers: of those the subject was loaded with.

    Source:
        Zeiler & Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.1 and Figure 5.
    """
    places = places_of(kind, subject.side)
    with torch.inference_mode():
        start = {name: values.double() for name, values in subject.network(image[None]).items()}
        distances: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        probabilities = []
        for first in range(0, len(places), _AT_ONCE):
            some = places[first : first + _AT_ONCE]
            outputs = subject.network(torch.cat([transformed(image[None], kind, place, fill) for place in some]))
            for layer in layers:
                moved = (outputs[layer].double() - start[layer]).flatten(1)
                distances[layer].append(moved.norm(dim=1))
            probabilities.append(outputs[LOGITS].double().softmax(1)[:, label])
            advance(len(some))
    return Curves(
        places,
        {layer: torch.cat(parts).cpu().numpy() for layer, parts in distances.items()},
        torch.cat(probabilities).cpu().numpy(),
    )
