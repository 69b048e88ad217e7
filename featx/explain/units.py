"""What a unit of a layer looks for: the images that excite it most, and what in them does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from featx.errors import UsageError
from featx.explain.rectifiers import deconvolved, relus, with_other_relus
from featx.explain.subject import Subject
from featx.heads.splits import copies_of
from featx.networks.graph.layout import CHANNELS_LAST, MAP, VECTOR
from featx.networks.layer_names import Layer
from featx.status import Status
from featx.store.reader import Features

NOTHING = -1
DECONVNET, GRADIENT = "a deconvnet", "their gradient (it has no ReLU for a deconvnet)"
_BYTES_AT_ONCE = 64 << 20
_AT_ONCE = 16


@dataclass(frozen=True)
class Strongest:
    """Of U units, the k images with the largest activation, largest first; of equal ones the first row.

    Attributes:
        rows: (U, k); NOTHING where no further image excites the unit.
        activations: (U, k) float32; NaN there.
    """

    rows: npt.NDArray[np.intp]
    activations: npt.NDArray[np.float32]


def unit_axis(subject_layer: str, shape: tuple[int, ...], layout: str) -> int:
    """Which axis of a layer's shape counts its units: channels of maps, values of a vector.

    Raises:
        UsageError: its values are neither.
    """
    if layout in (MAP, VECTOR) or len(shape) == 1:
        return 0
    if layout == CHANNELS_LAST:
        return 2
    raise UsageError(f"{subject_layer} has the shape {shape}, which is neither maps nor a vector: it has no units")


def largest_activations(features: Features, layer: str, axis: int) -> npt.NDArray[np.float32]:
    """(N, C): the largest activation of every unit over an image's positions; NaN of failed images and of copies.

    Args:
        axis: of one image's values, that counts the units; values that are pooled already have one axis.
    """
    values = features[layer]
    if values.ndim == 2:
        found = np.array(values, np.float32)
    else:
        others = tuple(1 + other for other in range(values.ndim - 1) if other != axis)
        found = np.empty((len(values), values.shape[1 + axis]), np.float32)
        step = max(1, _BYTES_AT_ONCE // max(1, 4 * int(np.prod(values.shape[1:]))))
        for start in range(0, len(values), step):
            found[start : start + step] = values[start : start + step].max(axis=others)
    found[~first_copies(features)] = np.nan
    return found


def first_copies(features: Features) -> npt.NDArray[np.bool_]:
    """(N,) whether an image is there, and no row before it has the same bytes: one photo must not fill the nine."""
    found: npt.NDArray[np.bool_] = copies_of(features.sha256) == np.arange(len(features))
    return found & (features.status == Status.DONE)  # type: ignore[no-any-return]  # NumPy has no type for it


def strongest(activations: npt.NDArray[np.float32], units: npt.NDArray[np.intp], k: int) -> Strongest:
    """The k images that excite each unit most. Of a unit that is never negative, 0 is no activation.

    Args:
        activations: (N, C), NaN of images that do not count.
    """
    rows = np.full((len(units), k), NOTHING, np.intp)
    best = np.full((len(units), k), np.nan, np.float32)
    for place, unit in enumerate(units):
        column = activations[:, unit]
        order = np.argsort(-column, kind="stable")[:k]  # NaN comes last
        order = order[~np.isnan(column[order])]
        if not (column < 0).any():  # behind a ReLU
            order = order[column[order] > 0]
        rows[place, : len(order)] = order
        best[place, : len(order)] = column[order]
    return Strongest(rows, best)


def chosen_units(spec: str, count: int, seed: int) -> npt.NDArray[np.intp]:
    """The units that "0,7,12", "3-9", "random:16" or "all" stand for.

    >>> chosen_units("7,0,3-5", 64, 0)
    array([0, 3, 4, 5, 7])

    Raises:
        UsageError: something else, or a unit that there is not.
    """
    if spec == "all":
        return np.arange(count)
    if random := re.fullmatch(r"random:(\d{1,6})", spec):
        drawn = np.random.default_rng(seed).permutation(count)[: int(random[1])]
        found = {int(unit) for unit in drawn}
    else:
        found = set()
        for word in spec.split(","):
            part = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", word)
            if part is None:
                raise UsageError(f"--units is {spec!r}; it can be 0,7,12, 3-9, random:16 or all")
            first, last = int(part[1]), int(part[2] or part[1])
            if last < first or last >= count:
                raise UsageError(f"--units {word.strip()}: this layer has the units 0 to {count - 1}")
            found |= set(range(first, last + 1))
    if not found:
        raise UsageError(f"--units {spec}: that is no unit")
    return np.array(sorted(found), np.intp)


@dataclass(frozen=True)
class Projections:
    """Of B pairs of an image and a unit.

    Attributes:
        positions: (B, 2) row and column of the largest activation; 0, 0 of a vector.
        activations: (B,) float32.
        projections: (B, 3, S, S) float32.
    """

    positions: npt.NDArray[np.intp]
    activations: npt.NDArray[np.float32]
    projections: npt.NDArray[np.float32]


def projection_of(network: fx.GraphModule) -> str:
    """How activations of a network are brought back to its pixels: a deconvnet, or without ReLUs the gradient."""
    return DECONVNET if relus(network) else GRADIENT


def project(subject: Subject, layer: Layer, inputs: Tensor, units: npt.NDArray[np.intp]) -> Projections:
    """What of each image excites one unit: its largest activation, alone, back to the pixels through a deconvnet.

    All activations of the layer but that one are set to 0; then, layer by layer, the signal is unpooled with the
    switches of the forward pass, rectified, and filtered with the transposed weights. Where windows of max pooling
    overlap, a place takes the sum of what comes back to it. A network without ReLUs has no deconvnet: then it is the
    activation times its gradient, see `projection_of`.

    Args:
        inputs: (B, 3, S, S) normalised.
        units: (B,) of each image.

    Source:
        Zeiler & Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 2.1.
    """
    is_deconvnet = projection_of(subject.network) == DECONVNET
    network = with_other_relus(subject.network, deconvolved) if is_deconvnet else subject.network
    last = subject.recipe.backbone.geometry_of(layer).layout == CHANNELS_LAST
    parts: list[tuple[Any, ...]] = []
    for start in range(0, len(inputs), _AT_ONCE):
        images = inputs[start : start + _AT_ONCE].detach().clone().requires_grad_()
        some = torch.from_numpy(units[start : start + _AT_ONCE]).to(images.device)
        values = network(images)[layer.name]
        values = values.movedim(-1, 1) if last else values
        own = values[torch.arange(len(some), device=images.device), some]
        height_width = tuple(own.shape[1:]) or (1, 1)
        flat = own.reshape(len(some), -1)
        places = flat.argmax(1, keepdim=True)
        best = flat.gather(1, places)[:, 0]
        (signal,) = torch.autograd.grad(best, images, best.detach())
        positions = np.stack(np.unravel_index(places[:, 0].cpu().numpy(), height_width), 1)
        parts.append((positions, best.detach().float().cpu().numpy(), signal.float().cpu().numpy()))
    positions, activations, projections = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Projections(positions, activations, projections)
