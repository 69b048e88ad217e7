"""Pixels (uint8) as the floating-point input of a network."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.images.preprocess import Preprocess


class NormalisedPixels:
    """(B, 3, S, S) uint8 -> the same scaled to 0..1, less the mean, over the deviation; channels last, on the device.

    The result of a call, on a CPU, lies in memory that belongs to the thread and is overwritten by its next block:
    fresh memory costs more than the arithmetic. Image by image, for the same reason: one fits the cache.
    """

    def __init__(self, preprocess: Preprocess, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._mean = torch.tensor(preprocess.mean, device=device)
        self._std = torch.tensor(preprocess.std, device=device)
        self._own = threading.local()

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(pixels).permute(0, 2, 3, 1)
        return self._by_rows(images.contiguous()).permute(0, 3, 1, 2)

    def on_gpu(self, images: Tensor) -> Tensor:
        """The same of (B, S, S, 3) on the device."""
        normalised = images.float().div_(255).sub_(self._mean).div_(self._std)
        return normalised.to(self._dtype).permute(0, 3, 1, 2)

    def _by_rows(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) -> the same; a row of W pixels is one long vector for the processor."""
        count, height, width, _ = images.shape
        mean, std = self._mean.repeat(width), self._std.repeat(width)
        values, result = self._memory(height, width * 3, count)
        for image, target in zip(images.view(count, height, -1), result, strict=True):
            values.copy_(image).div_(255).sub_(mean).div_(std)
            target.copy_(values)
        return result.view(count, height, width, 3)

    def _memory(self, height: int, row: int, count: int) -> tuple[Tensor, Tensor]:
        held: tuple[Tensor, Tensor] | None = getattr(self._own, "held", None)
        if held is None or held[1].shape != (count, height, row):
            held = torch.empty(height, row), torch.empty(count, height, row, dtype=self._dtype)
            self._own.held = held
        return held
