"""A trained network as something to be asked about: differentiable, with its preprocessing and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from featx.errors import ImageError, UsageError
from featx.extraction.recipe import Recipe
from featx.images.block import Block
from featx.images.inputs import InputDecoder, name_of
from featx.networks.download import Progress
from featx.networks.load import load_network
from featx.networks.registry import class_names
from featx.status import Status

LOGITS = "logits"


@dataclass(frozen=True)
class Subject:
    """A network that can be differentiated.

    Attributes:
        recipe: backbone, layers, preprocessing and device, as of an extraction.
        network: (B, 3, S, S) normalised -> {layer: activations}, `LOGITS` among them; float32, eval mode, nothing in
            place, parameters without gradients.
        classes: their names; indices as text where nobody has named them.
        weights_sha256: of the weights file.
    """

    recipe: Recipe
    network: fx.GraphModule
    classes: Sequence[str]
    weights_sha256: str

    @property
    def device(self) -> torch.device:
        return self.recipe.device

    @property
    def side(self) -> int:
        """Of the square that the network sees, in pixels."""
        return self.recipe.preprocess.crop

    def pixels(self, images: Sequence[Any]) -> npt.NDArray[np.uint8]:
        """(N, S, S, 3): what the network is given of images, after resize and crop, before normalisation.

        Raises:
            ImageError: one cannot be used.
        """
        recipe = self.recipe
        decoder = InputDecoder(recipe.preprocess, max(1, len(images)), exif=recipe.exif)
        block: Block = decoder.images(images, size=max(1, len(images)))
        bad = np.flatnonzero(block.status != Status.DONE)
        if len(bad):
            place = int(bad[0])
            raise ImageError(f"{name_of(images[place], place)} cannot be used: {block.reasons[place]}")
        return np.ascontiguousarray(block.pixels[: len(images)].transpose(0, 2, 3, 1))

    def normalised(self, pixels: npt.NDArray[Any]) -> Tensor:
        """(N, 3, S, S) float32 on the device, of pixels (N, S, S, 3) from 0 to 255."""
        values = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(0, 3, 1, 2).float() / 255
        return (values - self._constant("mean")) / self._constant("std")

    def _constant(self, name: str) -> Tensor:
        return torch.tensor(self.recipe.preprocess.values()[name], device=self.device).view(1, 3, 1, 1)

    def logits(self, inputs: Tensor) -> Tensor:
        """(N, K) scores before the softmax."""
        found: Tensor = self.network(inputs)[LOGITS]
        return found

    def class_index(self, name: str) -> int:
        """The index of a class, by name or number.

        Raises:
            UsageError: there is none.
        """
        if name in self.classes:
            return list(self.classes).index(name)
        if name.isascii() and name.isdigit() and int(name) < len(self.classes):
            return int(name)
        near = [one for one in self.classes if name.lower() in one.lower()][:3]
        hint = f"; nearest: {', '.join(near)}" if near else f"; it has {len(self.classes)}, from 0"
        raise UsageError(f"{self.recipe.backbone.name} has no class {name!r}{hint}")


def load_subject(
    backbone: str,
    layers: str | None = None,
    *,
    weights: str = "default",
    device: str = "auto",
    preprocess: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
    squash: bool = False,
    exif: bool = False,
    progress: Progress | None = None,
) -> Subject:
    """Load a network to ask about.

    Args:
        layers: those whose activations are needed beside the logits.
        weights, device, preprocess, resize, crop, squash, exif: as of `featx extract`.

    Raises:
        UsageError and its children: an unknown network, layer, weights or device.
    """
    wanted = LOGITS if layers is None else f"{layers},{LOGITS}"
    recipe = Recipe.plan(
        backbone=backbone, layers=wanted, weights=weights, device=device, preprocess=preprocess, resize=resize,
        crop=crop, squash=squash, exif=exif,
    )  # fmt: skip
    return subject_of(recipe, progress)


def subject_of(recipe: Recipe, progress: Progress | None = None) -> Subject:
    """The network of a recipe; its classes have names if `LOGITS` is among the layers.

    Raises:
        UsageError: the recipe has several views of each image.
    """
    if recipe.preprocess.view_count > 1:
        raise UsageError(
            f"these features are the {recipe.preprocess.aggregate} of {recipe.preprocess.view_count} views of each "
            f"image; this needs one view: extract again with --views center"
        )
    loaded = load_network(recipe.backbone.name, recipe.weights, progress)
    network = loaded.capture(recipe.layers).to(recipe.device).eval().requires_grad_(False)
    logits = next((one for one in recipe.layers if one.name == LOGITS), None)
    count = 0 if logits is None else recipe.backbone.geometry_of(logits).shape[-1]
    return Subject(recipe, network, class_names(recipe.backbone.name, count) if count else (), loaded.sha256)
