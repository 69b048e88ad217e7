"""Layers that an extraction leaves on the GPU: the head that is fitted next need not carry them there again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.status import Status
from featx.store.reader import Features
from featx.store.schema import LayerSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_SHARE = 3  # one part of so many of the memory that is free, for the layers; the heads need some too


class DeviceCache:
    """Layers of a features file on the device that computed them: row i is image i, as in the file.

    Empty until an extraction on a GPU fills it, and for layers that the GPU's memory has no room for.
    """

    def __init__(self) -> None:
        self._layers: dict[str, Tensor] = {}
        self._there: npt.NDArray[np.bool_] = np.zeros(0, bool)

    def make_room(self, specs: list[LayerSpec], count: int, device: torch.device) -> None:
        """For `count` rows of each layer, the small ones first."""
        import torch

        from featx.runtime.memory import free_memory

        left = free_memory(device) // _SHARE
        for spec in sorted(specs, key=lambda spec: spec.bytes_per_image):
            left -= count * spec.bytes_per_image
            if left < 0:
                break
            shape = count, math.prod(spec.shape)
            self._layers[spec.name] = torch.empty(shape, dtype=getattr(torch, spec.dtype), device=device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what the memory was before may still be in use by another stream
        self._there = np.zeros(count, bool)

    def put(self, first: int, count: int, found: dict[str, Tensor]) -> None:
        """Copy the first `count` rows of what the network made of a block, to where they belong."""
        for name, values in self._layers.items():
            values[first : first + count].copy_(found[name][:count].flatten(1))
        self._there[first : first + count] = True

    def complete(self, features: Features) -> None:
        """Fetch what this process has not computed from the finished file; what failed is NaN as it is there."""
        import torch

        missing = np.flatnonzero(~self._there | (features.status != Status.DONE))
        for name, values in self._layers.items():
            if values.device.type == "cuda":
                torch.cuda.synchronize(values.device)
            if len(missing):
                rows = features[name][missing].reshape(len(missing), -1)
                places = torch.from_numpy(missing).to(values.device)
                values[places] = torch.from_numpy(rows).to(values.device)

    def values(self, features: Features, layer: str) -> npt.NDArray[Any] | Tensor:
        """(N, D) of a layer: on the GPU if it is there, else mapped from the file."""
        here = self._layers.get(layer)
        return features[layer].reshape(len(features), -1) if here is None else here
