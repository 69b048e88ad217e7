"""Options of `featx show`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featx.options.common import (
    device_option,
    exif_option,
    follow_links_option,
    max_bad_option,
    preprocess_option,
    resize_option,
    squash_option,
)
from featx.options.option import Config, option

SALIENCY_METHODS = ("gradient", "guided", "deconvnet", "smoothgrad", "integrated", "gradcam")
BASELINES = ("black", "mean")
FORMATS = ("png", "svg", "pdf")


def format_option() -> Any:
    return option("png", "Of the pictures.", choices=FORMATS)


def seed_option(of: str) -> Any:
    return option(0, f"Seed of {of}.", low=0, high=2**32 - 1, metavar="N")


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
    format: str = format_option()


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
    seed: int = seed_option("the noise")


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
    format: str = format_option()


@dataclass(frozen=True)
class InvarianceConfig(ShowConfig):
    """Options of `featx show invariance`."""

    layers: str | None = option(
        None, "Layers whose features are compared; by default the first one and that of featx extract.", "-l",
        metavar="LAYERS",
    )  # fmt: skip
    target: str | None = option(
        None, "Class to follow, by name or number; by default what the network takes the image for.", metavar="CLASS"
    )
    fill: str = option(
        "edge", "What comes in from outside: the image's edge, or the mean colour.", choices=("edge", "mean")
    )


@dataclass(frozen=True)
class ClassImageConfig(Config):
    """Options of `featx show class-image`."""

    target: str | None = option(None, "Classes, by name or number, separated by commas; needed.", metavar="CLASSES")
    weights: str = option("default", "default, a torchvision name, a file, or random:SEED.", "-w", metavar="WEIGHTS")
    device: str = device_option()
    preprocess: str | None = preprocess_option()
    crop: int | None = option(
        None, "Side of the image in pixels; by default the weights' own.", low=16, high=2048, metavar="PIXELS"
    )
    parameters: str = option(
        "fourier", "What is searched: the pixels, as Simonyan et al., or their Fourier spectrum.",
        choices=("fourier", "pixels"),
    )  # fmt: skip
    steps: int = option(256, "Steps of the search.", low=1, high=100_000, metavar="N")
    rate: float = option(0.05, "Step size of Adam.", low=1e-6, high=100.0, metavar="RATE")
    l2: float = option(0.0, "Weight of the penalty on the squared image.", low=0.0, high=100.0, metavar="LAMBDA")
    jitter: int | None = option(
        None, "Pixels that the image is moved by at random in every step; by default a sixteenth of its side.",
        low=0, high=1024, metavar="PIXELS",
    )  # fmt: skip
    no_turn: bool = option(False, "Do not also turn and scale it at random, by up to 10 degrees and 10 %.")
    blur: float = option(
        0.0, "Deviation of a blur in every step, of --parameters pixels.", low=0.0, high=50.0, metavar="PIXELS"
    )
    seed: int = seed_option("the search")
    format: str = format_option()


@dataclass(frozen=True)
class CorrespondenceConfig(ShowConfig):
    """Options of `featx show correspondence`."""

    layers: str | None = option(
        None, "Layers to compare; by default the last one of maps and that of featx extract.", "-l", metavar="LAYERS"
    )
    repeats: int = option(10, "Sets of random boxes.", low=2, high=10_000, metavar="N")
    seed: int = seed_option("random boxes")


@dataclass(frozen=True)
class EvolutionConfig(Config):
    """Options of `featx show evolution`."""

    images: str | None = option(
        None, "Images to look among; by default those that the run was trained on.", metavar="SOURCE"
    )
    layer: str | None = option(
        None, "Layer of maps or a vector; by default the last one of maps.", "-l", metavar="LAYER"
    )
    units: str = option("random:6", "Which channels: 0,7,12, 3-9, random:N or all.", metavar="UNITS")
    seed: int = seed_option("random units")
    device: str = device_option()
    follow_links: bool = follow_links_option()
    max_bad: float = max_bad_option()
    format: str = format_option()


@dataclass(frozen=True)
class MapConfig(Config):
    """Options of `featx show map`."""

    layer: str | None = option(None, "Layer of the file; by default the only one.", "-l", metavar="LAYER")
    method: str = option("tsne", "How: tsne, or umap (pip install 'featx[umap]').", choices=("tsne", "umap"))
    components: int = option(50, "Principal components that it begins with.", low=2, high=10_000, metavar="N")
    perplexity: float = option(30.0, "Neighbours that count, of tsne.", low=1.0, high=10_000.0, metavar="N")
    neighbors: int = option(15, "Neighbours that count, of umap.", low=2, high=10_000, metavar="N")
    normalize: str = option("none", "Rows first: as they are, or each divided by its length.", choices=("none", "l2"))
    seed: int = seed_option("the map")
    format: str = format_option()


@dataclass(frozen=True)
class NeighborsConfig(Config):
    """Options of `featx show neighbors`."""

    query: str = option(
        "random:4",
        "Rows of the file, as 12,99 or random:N; or an image, or a folder of images.",
        metavar="IMAGE|ROWS",
    )
    layers: str | None = option(None, "Layers of the file; by default all.", "-l", metavar="LAYERS")
    k: int = option(8, "Nearest images of each layer, also of the accuracy.", low=1, high=100, metavar="K")
    metric: str = option(
        "centred", "Distance: centred, the angle after the mean row is taken off; cosine; or euclidean.",
        choices=("centred", "cosine", "euclidean"),
    )  # fmt: skip
    seed: int = seed_option("random rows")
    device: str = device_option()
    weights_file: str | None = option(
        None, "For a query that is an image: where the weights are now, if they have moved.", metavar="FILE",
        recorded=False,
    )  # fmt: skip
    format: str = format_option()


@dataclass(frozen=True)
class TopConfig(ShowConfig):
    """Options of `featx show top`."""

    layers: str | None = option(
        None, "Layers of maps or vectors; by default the last one of maps.", "-l", metavar="LAYERS"
    )
    units: str = option("random:16", "Which channels of a layer: 0,7,12, 3-9, random:N or all.", metavar="UNITS")
    k: int = option(9, "Images of each unit.", low=1, high=100, metavar="K")
    seed: int = seed_option("random units")
    weights_file: str | None = option(
        None, "Where the weights are now, of a features file whose weights have moved.", metavar="FILE",
        recorded=False,
    )  # fmt: skip
    follow_links: bool = follow_links_option()
    max_bad: float = max_bad_option()


@dataclass(frozen=True)
class ReportConfig(Config):
    """Options of `featx report`."""

    layer: str | None = option(
        None, "Layer that is mapped and classified; by default the one whose neighbours agree best.", "-l",
        metavar="LAYER",
    )  # fmt: skip
    photos: str | None = option(
        None, "An image or a folder of some: what of them decides for the network.", metavar="IMAGES"
    )
    seed: int = seed_option("map, folds and units")
    device: str = device_option()
    weights_file: str | None = option(
        None, "Where the weights are now, if they have moved.", metavar="FILE", recorded=False
    )


@dataclass(frozen=True)
class PairsConfig(Config):
    """Options of `featx pairs`."""

    layer: str | None = option(None, "Layer of the file; by default the only one.", "-l", metavar="LAYER")
    metric: str = option("cosine,l2", "Distances: cosine, chi-square, l2, separated by commas.", metavar="METRICS")
    seed: int = seed_option("the folds, where the pairs have none")
    format: str = format_option()


@dataclass(frozen=True)
class AugmentConfig(Config):
    """Options of `featx show augment`."""

    augment: str = option(
        "flip,crop", "As for featx finetune: flip, crop[:SMALLEST], shift:PIXELS, jitter:STRENGTH, elastic:PIXELS, "
        "mixup[:ALPHA], cutmix[:ALPHA], with commas.", metavar="WHAT",
    )  # fmt: skip
    backbone: str = option("alexnet", "Network whose preprocessing is meant.", "-b", metavar="NET")
    images: int = option(6, "Images, drawn at random where there are more.", low=1, high=50, metavar="N")
    draws: int = option(6, "How often each is changed.", low=1, high=30, metavar="N")
    seed: int = seed_option("the choice of images and of changes")
    format: str = format_option()
