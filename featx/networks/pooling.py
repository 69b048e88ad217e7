"""Pooling of maps and tokens while they are still on the device, and of the values of several views."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from featx.errors import UsageError
from featx.networks.graph.layout import CHANNELS_LAST, CLASS_AND_TOKENS, MAP, TOKENS, VECTOR

_SUITS = {
    "avg": (MAP, CHANNELS_LAST), "max": (MAP, CHANNELS_LAST), "spp": (MAP, CHANNELS_LAST),
    "cls": (CLASS_AND_TOKENS,), "mean": (TOKENS, CLASS_AND_TOKENS), "cls+mean": (CLASS_AND_TOKENS,),
}  # fmt: skip
_KINDS = {
    MAP: "none, flatten, avg, max or spp:1,2,4", CHANNELS_LAST: "none, flatten, avg, max or spp:1,2,4",
    TOKENS: "none, flatten or mean", CLASS_AND_TOKENS: "none, flatten, cls, mean or cls+mean",
}  # fmt: skip


@dataclass(frozen=True)
class Pooling:
    """What happens to a layer's maps or tokens; vectors pass unchanged.

    Attributes:
        kind: "none", "flatten"; of maps, channels first or last, "avg", "max", "spp"; of (L, D) tokens "cls", the
            class token; "mean", of the tokens without the class token; "cls+mean", the one behind the other.
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

    def refuse_unsuited(self, layer: str, shape: tuple[int, ...], layout: str) -> None:
        """Raise UsageError, with what can be used, if a layer's values cannot be pooled in this way."""
        if self.kind in ("none", "flatten") or layout == VECTOR or layout in _SUITS[self.kind]:
            return
        what = {
            MAP: "a map", CHANNELS_LAST: "a map with its channels last", TOKENS: "tokens without a class token",
            CLASS_AND_TOKENS: "tokens behind a class token",
        }.get(layout, "neither a map nor tokens")  # fmt: skip
        raise UsageError(
            f"--pool {self.spec} does not suit {layer}: its shape {shape} is {what}. "
            f"Use --pool {_KINDS.get(layout, 'none or flatten')}"
        )

    def shape(self, shape: tuple[int, ...], layout: str = MAP) -> tuple[int, ...]:
        """What a layer of this shape per image becomes.

        Args:
            layout: see `featx.networks.graph.layout`.
        """
        if self.kind == "none" or len(shape) == 1:
            return shape
        if self.kind == "flatten":
            return (int(torch.Size(shape).numel()),)
        values = shape[0] if layout == MAP else shape[-1]
        parts = sum(n * n for n in self.levels) if self.kind == "spp" else 2 if self.kind == "cls+mean" else 1
        return (values * parts,)

    def __call__(self, activations: Tensor, layout: str = MAP) -> Tensor:
        """(B, ...) -> (B, D), D as `shape` says; (B, D) unchanged.

        >>> Pooling("spp", (1, 2))(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[15.,  5.,  7., 13., 15.]])
        >>> Pooling("cls+mean")(torch.tensor([[[9.0], [1.0], [2.0]]]), CLASS_AND_TOKENS)
        tensor([[9.0000, 1.5000]])
        """
        if self.kind == "none" or activations.ndim == 2:
            return activations
        if self.kind == "flatten":
            return activations.flatten(1)
        if self.kind in ("cls", "mean", "cls+mean"):
            return self._pool_tokens(activations, with_class=layout == CLASS_AND_TOKENS)
        if layout == CHANNELS_LAST:
            activations = activations.movedim(-1, 1)
        if self.kind == "avg":
            return activations.mean(dim=(2, 3))
        if self.kind == "max":
            return activations.amax(dim=(2, 3))
        grids = [F.adaptive_max_pool2d(activations, n).flatten(1) for n in self.levels]
        return torch.cat(grids, dim=1)

    def _pool_tokens(self, tokens: Tensor, *, with_class: bool) -> Tensor:
        mean = tokens[:, 1:].mean(1) if with_class else tokens.mean(1)
        if self.kind == "mean":
            return mean
        return tokens[:, 0] if self.kind == "cls" else torch.cat([tokens[:, 0], mean], dim=1)


def parse_pooling(spec: str) -> Pooling:
    """What `--pool SPEC` means.

    >>> parse_pooling("spp:1,2,4").levels
    (1, 2, 4)
    """
    if spec in ("none", "avg", "max", "flatten", "cls", "mean", "cls+mean"):
        return Pooling(spec)
    if re.fullmatch(r"spp:[1-9]\d?(,[1-9]\d?)*", spec):
        return Pooling("spp", tuple(int(n) for n in spec.removeprefix("spp:").split(",")))
    raise UsageError(
        f"--pool is {spec!r}; it can be none, avg, max, flatten or a pyramid such as spp:1,2,4; for tokens cls, "
        f"mean or cls+mean"
    )


def pool_views(
    compute: Callable[[npt.NDArray[np.uint8]], dict[str, npt.NDArray[Any]]],
    pixels: npt.NDArray[np.uint8],
    aggregate: str,
) -> dict[str, npt.NDArray[Any]]:
    """One value of several views of each image: {layer: (B, ...)}, of a "stack" (B, V, ...), float32.

    Args:
        compute: (B, 3, S, S) uint8 -> {layer: (B, ...)} float32, in memory that may be kept.
        pixels: (B, 3, V * S, S), an image's views one below the other.
        aggregate: "mean", "max" or "stack".
    """
    side = pixels.shape[3]
    count = pixels.shape[2] // side
    found: dict[str, npt.NDArray[Any]] = {}
    for view in range(count):
        for name, values in compute(pixels[:, :, view * side : (view + 1) * side]).items():
            if aggregate == "stack":
                if view == 0:
                    found[name] = np.empty((len(values), count, *values.shape[1:]), values.dtype)
                found[name][:, view] = values
            elif view == 0:
                found[name] = values
            else:
                (np.add if aggregate == "mean" else np.maximum)(found[name], values, out=found[name])
    if aggregate == "mean":
        for sums in found.values():
            np.divide(sums, count, out=sums)
    return found
