"""Options of `featx show`."""

from __future__ import annotations

from dataclasses import dataclass

from featx.options.common import device_option, exif_option, preprocess_option, resize_option, squash_option
from featx.options.option import Config, option

SALIENCY_METHODS = ("gradient", "guided", "deconvnet", "smoothgrad", "integrated", "gradcam")
BASELINES = ("black", "mean")


@dataclass(frozen=True)
class ShowConfig(Config):
    """What all of them need: a network."""

    backbone: str = option(
        "alexnet", "Network: any torchvision classifier, or the folder of a fine-tuned one.", "-b", metavar="NET"
    )
    weights: str = option("default", "default, a torchvision name, a file, or random:SEED.", "-w", metavar="WEIGHTS")
    device: str = device_option()
    preprocess: str | None = preprocess_option()
    resize: int | None = resize_option()
    squash: bool = squash_option()
    exif: bool = exif_option()


@dataclass(frozen=True)
class SaliencyConfig(ShowConfig):
    """Options of `featx show saliency`."""

    method: str = option(
        "gradient,smoothgrad,gradcam",
        f"Which, separated by commas: {', '.join(SALIENCY_METHODS)}; or all.",
        metavar="METHODS",
    )
    target: str | None = option(
        None, "Class to explain, by name or number; by default what the network takes the image for.", metavar="CLASS"
    )
    layer: str | None = option(None, "Layer of maps for gradcam; by default the last one.", "-l", metavar="LAYER")
    samples: int = option(50, "Noisy copies of smoothgrad.", low=1, high=10_000, metavar="N")
    noise: float = option(
        0.15, "Their deviation, as a share of the image's range.", low=0.0, high=10.0, metavar="SHARE"
    )
    steps: int = option(50, "Steps of integrated.", low=1, high=10_000, metavar="N")
    baseline: str = option("black", "What integrated starts from: black, or the mean colour.", choices=BASELINES)
    seed: int = option(0, "Seed of the noise.", low=0, high=2**32 - 1, metavar="N")


@dataclass(frozen=True)
class MapsConfig(ShowConfig):
    """Options of `featx show maps`."""

    layers: str | None = option(None, "Layers of maps; by default as featx extract.", "-l", metavar="LAYERS")
    strongest: int = option(25, "How many maps of each layer, strongest first.", low=1, high=400, metavar="N")


@dataclass(frozen=True)
class OcclusionConfig(ShowConfig):
    """Options of `featx show occlusion`."""

    layer: str | None = option(
        None, "Layer whose strongest map is followed; by default the last one of maps.", "-l", metavar="LAYER"
    )
    square: int | None = option(
        None,
        "Side of the grey square in pixels; by default a quarter of the image's.",
        low=1,
        high=8192,
        metavar="PIXELS",
    )
    stride: int | None = option(
        None,
        "Pixels from one position to the next; by default a third of the square.",
        low=1,
        high=8192,
        metavar="PIXELS",
    )
    target: str | None = option(
        None, "Class to follow, by name or number; by default what the network takes the image for.", metavar="CLASS"
    )


@dataclass(frozen=True)
class FiltersConfig(Config):
    """Options of `featx show filters`."""

    weights: str = option("default", "default, a torchvision name, a file, or random:SEED.", "-w", metavar="WEIGHTS")
    layer: str | None = option(
        None, "Convolution, by its name; by default the first. Of deeper ones the strongest input slices are shown.",
        "-l", metavar="LAYER",
    )  # fmt: skip
    scale: str = option(
        "each", "Brightness: each filter by its own largest weight, or all by one.", choices=("each", "all")
    )
    slices: int = option(3, "Input slices of each filter, of a deeper layer.", low=1, high=64, metavar="N")
