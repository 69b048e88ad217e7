"""What the commands that show something of single images have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.artifacts.artifact import plan_of
from featx.errors import UsageError
from featx.explain.subject import Subject, load_subject
from featx.extraction.recipe import Recipe, default_layer
from featx.images.bad_image import BadImage
from featx.images.sources.read import read_file
from featx.networks.weights_file import digest_of_weights
from featx.options.show import ShowConfig
from featx.runtime.progress import Reporter
from featx.runtime.text import printable

if TYPE_CHECKING:
    from torch import fx

    from featx.networks.backbone import Backbone


MOST_IMAGES = 64
_STEM = 60  # characters of an image's name in that of its picture


class Shown:
    """Some images and the names of their pictures."""

    def __init__(self, images: Sequence[str | os.PathLike[str]]) -> None:
        """Read them.

        Raises:
            UsageError: none, too many, or one that cannot be read.
        """
        if not 1 <= len(images) <= MOST_IMAGES:
            raise UsageError(f"{len(images)} images were given; from 1 to {MOST_IMAGES} can be shown at once")
        self.paths = [Path(image) for image in images]
        self.contents: list[bytes] = []
        for path in self.paths:
            try:
                self.contents.append(read_file(path))
            except BadImage as bad:
                raise UsageError(f"{printable(str(path))} cannot be used: {bad}") from None
        self.stems: list[str] = []
        for path in self.paths:
            stem = base = printable(path.stem)[:_STEM] or "image"
            number = 1
            while stem in self.stems:  # of two folders
                number += 1
                stem = f"{base}-{number}"
            self.stems.append(stem)

    def plan(self, config: ShowConfig, **more: Any) -> dict[str, Any]:
        """What the pictures depend on."""
        hashes = [hashlib.sha256(content).hexdigest() for content in self.contents]
        weights = digest_of_weights(config.backbone, config.weights)
        return plan_of(config, without=("device",), images=hashes, weights=weights, **more)


def subject_for(config: ShowConfig, layers: str | None, reporter: Reporter) -> Subject:
    """The network of a command's options."""
    return load_subject(
        config.backbone, layers, weights=config.weights, device=config.device, preprocess=config.preprocess,
        resize=config.resize, squash=config.squash, exif=config.exif, progress=reporter.download,
    )  # fmt: skip


def layer_of_maps(config: ShowConfig, layer: str | None) -> str:
    """A layer of (C, H, W) maps: the one that is named, or the last one that is no pooling.

    Raises:
        UsageError: it is none, or there is none.
    """
    recipe = Recipe.plan(
        backbone=config.backbone, weights=config.weights, preprocess=config.preprocess, device="cpu",
        layers=layer or "*",
    )  # fmt: skip
    shapes = {one.name: recipe.backbone.geometry_of(one).shape for one in recipe.layers}
    found = next(reversed([name for name, shape in shapes.items() if len(shape) == 3]), None)
    found = found if layer else last_maps(recipe.backbone)
    if found is None:
        what = f"{layer} of {config.backbone} is" if layer else f"{config.backbone} has"
        raise UsageError(f"{what} no layer of maps (C, H, W); featx layers {config.backbone} lists them")
    return found


def first_and_last(config: ShowConfig) -> str:
    """The first layer of a network and the one that `featx extract` gives by default, as the options have them."""
    recipe = Recipe.plan(
        backbone=config.backbone, weights=config.weights, preprocess=config.preprocess, device="cpu", layers="all"
    )
    return f"{recipe.layers[0].name},{default_layer(config.backbone)}"


def last_maps(backbone: Backbone) -> str | None:
    """The last layer of maps (C, H, W) with more than one position that is no pooling; None if there is none."""
    for layer in reversed(backbone.names.main):
        shape = backbone.geometry_of(layer).shape
        if len(shape) == 3 and shape[1] * shape[2] > 1 and "pool" not in _kind(backbone.nodes[layer.node]):
            return layer.name
    return None


def has_relus(backbone: Backbone) -> bool:
    """Whether there is a ReLU or ReLU6 in a network."""
    return any(_kind(node) in ("relu", "relu6") for node in backbone.nodes.values())


def _kind(node: fx.Node) -> str:
    """The name of a node's module class or function, in small letters."""
    if node.op == "call_module" and node.graph.owning_module is not None:
        return type(node.graph.owning_module.get_submodule(str(node.target))).__name__.lower()
    return str(getattr(node.target, "__name__", node.target)).lower()
