"""One frozen dataclass per command: every option's default, range and help, written once.

The command line is built from these fields, the Python functions take them, and the output files store them.
"""

from __future__ import annotations

from dataclasses import dataclass

from featx.options.common import (
    AGGREGATES,
    VIEWS,
    batch_size_option,
    decode_option,
    device_option,
    exif_option,
    fit_option,
    follow_links_option,
    grey_option,
    image_timeout_option,
    interpolation_option,
    max_bad_option,
    mean_option,
    pad_color_option,
    preprocess_option,
    resize_option,
    squash_option,
    std_option,
    workers_option,
)
from featx.options.option import Config, option

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class ExtractConfig(Config):
    """Options of `featx extract`."""

    backbone: str = option(
        "alexnet",
        "Network: alexnet, vgg16, any torchvision classifier, timm:NAME, or net.py:build.",
        "-b",
        metavar="NET",
    )
    layers: str | None = option(
        None,
        "Layers: names, ranges (conv1-conv5), globs (conv5_*), penultimate, all; separated by commas. By default fc7 "
        "of AlexNet and VGG, penultimate of other networks.",
        "-l",
        metavar="LAYERS",
    )
    weights: str = option(
        "default",
        "default, a torchvision weights name, a file of torch.save or safetensors (FILE#NAME: one of several in it), "
        "or random:SEED.",
        "-w",
        metavar="WEIGHTS",
    )
    preprocess: str | None = preprocess_option()
    pool: str = option(
        "none", "Pooling: none, flatten; of maps avg, max, spp:1,2,4; of tokens cls, mean, cls+mean.", metavar="POOL"
    )
    reduce: str | None = option(
        None, "Keep fewer values of each layer: pca:N principal components, srp:N sparse random projections, or "
        "those of a features file or head.", metavar="HOW",
    )  # fmt: skip
    precision: str = option("fp32", "Arithmetic of the network.", choices=PRECISIONS)
    dtype: str = option("float32", "Number type in the file.", choices=("float32", "float16"))
    device: str = device_option()
    decode: str = decode_option()
    batch_size: int | None = batch_size_option()
    resize: int | None = resize_option()
    crop: int | None = option(
        None, "Side of the centre crop in pixels, instead of the weights' own.", low=1, high=8192, metavar="PIXELS"
    )
    dense: int | None = option(
        None, "AlexNet, VGG and their like as fully convolutional networks on squares of so many pixels; layers are "
        "averaged over the positions.", low=1, high=8192, metavar="PIXELS",
    )  # fmt: skip
    squash: bool = squash_option()
    fit: str | None = fit_option()
    pad_color: str | None = pad_color_option()
    mean: str | None = mean_option()
    std: str | None = std_option()
    interpolation: str | None = interpolation_option()
    grey: bool = grey_option()
    exif: bool = exif_option()
    mirror: bool = option(False, "Flip every image horizontally.")
    views: str = option(
        "center", "Squares the network sees of an image: center; corners (four and the centre); ten (and mirrored).",
        choices=tuple(VIEWS),
    )  # fmt: skip
    aggregate: str = option("mean", "What is kept of the values of several views.", choices=AGGREGATES)
    plain: bool = option(False, "On a CPU, PyTorch's own operations: slower, and rounded as in training.")
    frames: int | None = option(
        None, "SOURCE are videos: so many evenly spaced frames of each, as the source frames:N:SOURCE.", low=1,
        high=10_000, metavar="N", recorded=False,
    )  # fmt: skip
    follow_links: bool = follow_links_option()
    max_bad: float = max_bad_option()
    image_timeout: float = image_timeout_option()
    workers: int | None = workers_option()
    retry_failed: bool = option(False, "Try the images again that failed before.", recorded=False)
    update: bool = option(
        False, "Let a file that is there grow: copy the rows of images with the same bytes, compute new images and "
        "new layers.", recorded=False,
    )  # fmt: skip
    overwrite: bool = option(
        False, "Put this result in the place of a features file of other settings or images, which stays until it is "
        "finished.", recorded=False,
    )  # fmt: skip
    shard: str | None = option(
        None,
        "Only part I of N, from 0 on, into FILE.I-of-N.h5; auto/N takes I from Slurm, Kubernetes or torchrun. "
        "`featx merge` joins the parts.",
        metavar="I/N",
        recorded=False,
    )


NO_FEATURE_DEPENDS_ON = (
    "frames", "follow_links", "max_bad", "image_timeout", "workers", "retry_failed", "update", "overwrite", "shard",
)  # fmt: skip


@dataclass(frozen=True)
class LayersConfig(Config):
    """Options of `featx layers`."""

    crop: int | None = option(
        None, "Side of the input in pixels; by default the weights' own.", low=1, high=8192, metavar="PIXELS"
    )


@dataclass(frozen=True)
class CheckConfig(Config):
    """Options of `featx check`."""

    backbone: str = option(
        "alexnet", "Network to estimate time and disk for: any torchvision classifier.", "-b", metavar="NET"
    )
    layers: str | None = option(
        None, "Layers to estimate disk for; by default as featx extract.", "-l", metavar="LAYERS"
    )
    follow_links: bool = follow_links_option()
    max_bad: float = max_bad_option()
    strict: bool = option(False, "Exit with status 3 for a single bad image, as with --max-bad 0.")
    workers: int | None = workers_option()


@dataclass(frozen=True)
class VerifyConfig(Config):
    """Options of `featx verify`."""

    rows: int = option(64, "How many rows to recompute, chosen at random.", low=1, metavar="N")
    all: bool = option(False, "Recompute all rows.")
    seed: int | None = option(
        None, "Seed of the choice of rows; by default another choice every time.", low=0, high=2**32 - 1, metavar="N"
    )
    tolerance: float | None = option(
        None,
        "Largest difference allowed, as a share of a layer's largest value; by default what its precision and "
        "decoder need, as the file says them.",
        low=0.0,
        high=1.0,
        metavar="SHARE",
    )
    source: str | None = option(
        None,
        "Where the images are now, if they have moved since the extraction; for a head its features, for a "
        "fine-tuned network its images.",
        metavar="PATH",
    )
    weights_file: str | None = option(
        None, "Where the weights file is now, if it has moved since the extraction.", metavar="FILE"
    )


@dataclass(frozen=True)
class PredictConfig(Config):
    """Options of `featx predict`."""

    top: int | None = option(
        None, "Instead of the scores of all classes, the N best classes and their probabilities.", low=1, metavar="N"
    )
    device: str = device_option()
    decode: str = decode_option()
    batch_size: int | None = batch_size_option()
    weights_file: str | None = option(
        None, "Where the weights file is now, if it has moved since the head was fitted.", metavar="FILE"
    )
    follow_links: bool = follow_links_option()
    max_bad: float = max_bad_option()
    image_timeout: float = image_timeout_option()
    workers: int | None = workers_option()


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """Options of `featx evaluate`."""

    split: str | None = option(None, "Only the images of this split, as stored in the file.", metavar="NAME")
    lesion: str | None = option(
        None, "Of a fine-tuned network: with units of these layers silent, all or a share, as conv3=0.5,fc6.",
        metavar="LAYERS",
    )  # fmt: skip
    bootstrap: int = option(
        1000, "Draws of the images behind 95 % intervals of the accuracy; 0 for none.", low=0, metavar="N"
    )
    seed: int = option(0, "Which units --lesion LAYER=SHARE silences.", low=0, high=2**32 - 1, metavar="N")
    device: str = device_option()
    batch_size: int | None = batch_size_option()
    follow_links: bool = follow_links_option()
    max_bad: float = max_bad_option()
    workers: int | None = workers_option()
