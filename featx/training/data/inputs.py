"""What a step is computed from: images, changed at random or not, or the stored output of frozen layers."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.images.preprocess import Preprocess
from featx.runtime.device import upload
from featx.runtime.memory import free_memory
from featx.training.data.augment import Augmentation, Draws, augment, draw
from featx.training.data.mixing import blend
from featx.training.data.pixels import Pixels, Rows

_ROWS_AT_ONCE = 256  # of stored features, read into memory on their way to the device


class Inputs(Protocol):
    """The inputs of n labelled images, by their places 0..n-1."""

    def __len__(self) -> int:
        """n."""

    def draw(self, count: int, generator: torch.Generator) -> Draws | None:
        """Random choices for the images of a step, the same whoever computes which of them."""

    def expect(self, places: Rows, rows: slice, draws: Draws | None) -> None:
        """This will be asked for soon."""

    def take(self, places: Rows, rows: slice, draws: Draws | None) -> Tensor:
        """(B, ...) float32 on the device, what the network or its trained part takes: B rows of a step.

        Args:
            places: of all images of the step.
            draws: for all of them.
        """


class ImageInputs:
    """Pixels, augmented and normalised for the whole network."""

    def __init__(
        self, pixels: Pixels, preprocess: Preprocess, augmentation: Augmentation, source: int, device: torch.device
    ) -> None:
        """Args:

        source: side of the pixels; `preprocess.crop` is what the network takes.
        """
        self._pixels, self._how, self._source = pixels, augmentation, source
        self._side = preprocess.crop
        colours = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocess.mean, device=device).view(colours)
        self._std = torch.tensor(preprocess.std, device=device).view(colours)

    def __len__(self) -> int:
        return len(self._pixels.rows)

    def draw(self, count: int, generator: torch.Generator) -> Draws | None:
        return None if self._how.is_none else draw(self._how, count, self._source, self._side, generator)

    def expect(self, places: Rows, rows: slice, draws: Draws | None) -> None:
        self._pixels.expect(_wanted(places, rows, draws)[0])

    def take(self, places: Rows, rows: slice, draws: Draws | None) -> Tensor:
        wanted, own, partners = _wanted(places, rows, draws)
        pixels = self._pixels.take(wanted)
        if draws is None or own is None or partners is None:
            images = self._augmented(pixels, None if draws is None else draws.part(rows))
        else:
            mixes = draws.mixes_of(rows)
            images = blend(
                self._augmented(pixels[upload(own, pixels.device)], draws.part(rows)),
                self._augmented(pixels[upload(partners, pixels.device)], draws.of(mixes.partners)),
                mixes,
            )
        return images.sub_(self._mean).div_(self._std).contiguous(memory_format=torch.channels_last)

    def _augmented(self, pixels: Tensor, draws: Draws | None) -> Tensor:
        how = self._how if draws is not None else Augmentation()
        choices = draws or draw(how, len(pixels), self._source, self._side, torch.Generator())
        return augment(pixels, how, choices, self._side)


def _wanted(places: Rows, rows: slice, draws: Draws | None) -> tuple[Rows, Tensor | None, Tensor | None]:
    """The images that are needed, each once where they are mixed, and where among them each and its partner are."""
    own = places[rows]
    if draws is None or draws.mixes is None:
        return own, None, None
    both = np.concatenate([own, places[draws.mixes_of(rows).partners.numpy()]])
    wanted, index = np.unique(both, return_inverse=True)
    return wanted, torch.from_numpy(index[: len(own)]), torch.from_numpy(index[len(own) :])


class FeatureInputs:
    """The stored output of frozen layers, for the images and, with two views, for their mirror images."""

    def __init__(self, views: list[npt.NDArray[Any]], rows: Rows, device: torch.device) -> None:
        """Args:

        views: one or two arrays (N, ...), maps of files perhaps.
        rows: the n rows of them that are used.
        """
        self._views, self._rows, self._device = views, rows, device
        self._kept: list[Tensor] = []
        if device.type == "cuda" and sum(4 * view[:1].size * len(rows) for view in views) <= free_memory(device) // 3:
            self.keep_on_device()

    def keep_on_device(self) -> None:
        """Read everything now, once, and take it from the device from now on."""
        for view in self._views:
            kept = torch.empty(len(self._rows), *view.shape[1:], device=self._device)
            for start in range(0, len(kept), _ROWS_AT_ONCE):
                part = view[self._rows[start : start + _ROWS_AT_ONCE]]
                kept[start : start + len(part)] = torch.from_numpy(np.asarray(part, np.float32))
            self._kept.append(kept)

    def __len__(self) -> int:
        return len(self._rows)

    def draw(self, count: int, generator: torch.Generator) -> Draws | None:
        if len(self._views) == 1:
            return None
        return draw(Augmentation(flip=True), count, 1, 1, generator)

    def expect(self, places: Rows, rows: slice, draws: Draws | None) -> None:
        """Reading them is all there is to do."""

    def take(self, places: Rows, rows: slice, draws: Draws | None) -> Tensor:
        own = places[rows]
        found = self._read(0, own)
        if draws is not None:
            turned = torch.nonzero(draws.mirrored[rows])[:, 0]
            found[turned.to(found.device)] = self._read(1, own[turned.numpy()])
        return found

    def _read(self, view: int, places: Rows) -> Tensor:
        if self._kept:
            return self._kept[view][upload(torch.from_numpy(places), self._device)]
        return upload(torch.from_numpy(np.asarray(self._views[view][self._rows[places]], np.float32)), self._device)
