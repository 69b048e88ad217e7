"""The filters of a convolution, as pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from featx.errors import UsageError

_COLOURS = 3


@dataclass(frozen=True)
class Filters:
    """Of one convolution.

    Attributes:
        name: of the module.
        weights: (F, C, h, w), C per group.
        pictures: of a convolution on images, (F, h, w, 3) uint8 with 0 in the middle grey; else (F, k, h, w) float32,
            the k input slices of each filter with the largest weights.
        slices: (F, k) which input channels those are; empty for a convolution on images.
    """

    name: str
    weights: npt.NDArray[np.float32]
    pictures: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    slices: npt.NDArray[np.intp]


def filters_of(network: nn.Module, layer: str | None, *, scale: str = "each", slices: int = 3) -> Filters:
    """The filters of a convolution.

    Args:
        layer: the name of the module; by default the first.
        scale: "each": a filter's own largest weight is black or white; "all": the largest of all is. The colours of a
            filter have one scale, so that its hue is right.

    Raises:
        UsageError: no convolution of that name.
    """
    found = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    if not found:
        raise UsageError("this network has no convolution")
    name = next(iter(found)) if layer is None else layer
    if name not in found:
        raise UsageError(f"there is no convolution {name!r}; there is {', '.join(list(found)[:8])}")
    weights = found[name].weight.detach().float().cpu().numpy()
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    if scale == "all":
        largest = np.full_like(largest, largest.max())
    scaled = weights / np.where(largest == 0, 1.0, largest)
    if weights.shape[1] == _COLOURS:
        pictures = np.rint(127.5 + 127.5 * scaled).astype(np.uint8).transpose(0, 2, 3, 1)
        return Filters(name, weights, pictures, np.zeros((len(weights), 0), np.intp))
    count = min(slices, weights.shape[1])
    strength = np.square(weights.astype(np.float64)).sum(axis=(2, 3))
    order = np.argsort(-strength, axis=1, kind="stable")[:, :count]
    chosen = np.take_along_axis(scaled, order[:, :, None, None], 1).astype(np.float32)
    return Filters(name, weights, chosen, order)
