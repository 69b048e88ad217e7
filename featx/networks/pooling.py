"""Pooling of (C, H, W) maps while they are still on the device."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featx.errors import UsageError


@dataclass(frozen=True)
class Pooling:
    """What happens to a layer's maps; vectors pass unchanged.

    Attributes:
        kind: "none", "avg", "max", "flatten" or "spp".
        levels: for "spp", the grids: (1, 2, 4) pools maxima over 1 x 1, 2 x 2 and 4 x 4 windows.

    Source of "spp":
        He et al., Spatial Pyramid Pooling in Deep Convolutional Networks, ECCV 2014.
    """

    kind: str
    levels: tuple[int, ...] = ()

    @property
    def spec(self) -> str:
        """As it is written on the command line."""
        return f"spp:{','.join(map(str, self.levels))}" if self.kind == "spp" else self.kind

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What a layer of this shape per image becomes."""
        if self.kind == "none" or len(shape) == 1:
            return shape
        if self.kind == "flatten":
            return (int(torch.Size(shape).numel()),)
        if self.kind == "spp":
            return (shape[0] * sum(n * n for n in self.levels),)
        return (shape[0],)

    def __call__(self, activations: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), D as `shape` says; (B, D) unchanged.

        >>> Pooling("spp", (1, 2))(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[15.,  5.,  7., 13., 15.]])
        """
        if self.kind == "none" or activations.ndim == 2:
            return activations
        if self.kind == "flatten":
            return activations.flatten(1)
        if self.kind == "avg":
            return activations.mean(dim=(2, 3))
        if self.kind == "max":
            return activations.amax(dim=(2, 3))
        grids = [F.adaptive_max_pool2d(activations, n).flatten(1) for n in self.levels]
        return torch.cat(grids, dim=1)


def parse_pooling(spec: str) -> Pooling:
    """What `--pool SPEC` means.

    >>> parse_pooling("spp:1,2,4").levels
    (1, 2, 4)
    """
    if spec in ("none", "avg", "max", "flatten"):
        return Pooling(spec)
    if re.fullmatch(r"spp:[1-9]\d?(,[1-9]\d?)*", spec):
        return Pooling("spp", tuple(int(n) for n in spec.removeprefix("spp:").split(",")))
    raise UsageError(f"--pool is {spec!r}; it can be none, avg, max, flatten, or a pyramid such as spp:1,2,4")
