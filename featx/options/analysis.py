"""Options of the commands that ask what features say: compare, rdm, similarity, suspects, clean."""

from __future__ import annotations

from dataclasses import dataclass

from featx.options.common import c_option, device_option, group_by_option, memory_option
from featx.options.option import Config, option
from featx.options.show import format_option, seed_option

DISSIMILARITIES = ("correlation", "cosine", "euclidean")
SIMILARITIES = ("cka", "cka-unbiased", "rsa", "rsa-kendall", "procrustes")


@dataclass(frozen=True)
class CompareConfig(Config):
    """Options of `featx compare`."""

    split: str | None = option(None, "Only the images of this split, as stored in the file.", metavar="NAME")
    bootstrap: int = option(1000, "Draws of the images behind the 95 % interval.", low=100, metavar="N")
    seed: int = seed_option("the draws")


@dataclass(frozen=True)
class RdmConfig(Config):
    """Options of `featx rdm`."""

    layers: str = option("all", "Layers: names, ranges and globs, separated by commas.", "-l", metavar="LAYERS")
    metric: str = option("correlation", "Dissimilarity of two images.", choices=DISSIMILARITIES)
    save: str = option("npy", "What the numbers are written as; h5 has them as /rdm.", choices=("npy", "csv", "h5"))
    split: str | None = option(None, "Only the images of this split, as stored in the file.", metavar="NAME")
    format: str = format_option()


@dataclass(frozen=True)
class SimilarityConfig(Config):
    """Options of `featx similarity`."""

    layers: str = option("all", "Layers: names, ranges and globs, separated by commas.", "-l", metavar="LAYERS")
    metric: str = option(
        "cka", "Linear CKA, biased or unbiased over batches; RSA by Spearman's or Kendall's rank correlation; "
        "Procrustes.", choices=SIMILARITIES,
    )  # fmt: skip
    dissimilarity: str = option("correlation", "Of two images, for RSA.", choices=DISSIMILARITIES)
    batch: int = option(512, "Images of a batch, for cka-unbiased.", low=4, metavar="N")
    bootstrap: int = option(
        0, "Bootstraps of the images behind 95 % intervals, for RSA; 0 for none.", low=0, metavar="N"
    )
    most: int = option(2000, "Of more images so many are chosen at random.", low=4, metavar="N")
    seed: int = seed_option("the choice, the batches and the bootstrap")
    format: str = format_option()


@dataclass(frozen=True)
class SuspectsConfig(Config):
    """Options of `featx suspects`."""

    layer: str | None = option(None, "Layer to look at; may be left out if there is only one.", "-l", metavar="LAYER")
    near: float = option(
        0.95, "Cosine from which two images are near-duplicates, the mean of all features taken first.", low=0.0,
        high=1.0, metavar="COSINE",
    )  # fmt: skip
    neighbors: int = option(10, "Nearest images that say whether one is an outlier.", low=1, high=100, metavar="K")
    c: float | None = c_option(" for the probabilities of the labels")
    folds: int = option(5, "Heads behind these probabilities: each is asked for a fold it has not seen.", low=2,
                        metavar="N")  # fmt: skip
    group_by: str | None = group_by_option()
    no_photos: bool = option(False, "Do not read the images again for dark, blurred and odd-sized ones.")
    device: str = device_option()
    memory: int | None = memory_option()
    seed: int = seed_option("the folds")


@dataclass(frozen=True)
class EncodeConfig(Config):
    """Options of `featx encode`."""

    layers: str = option("all", "Layers: names, ranges and globs, separated by commas.", "-l", metavar="LAYERS")
    folds: int = option(5, "Parts of the images that are predicted in turn from the others.", low=2, metavar="N")
    group_by: str | None = group_by_option()
    device: str = device_option()
    seed: int = seed_option("the folds")
    format: str = format_option()


REFERENCES = ("zeiler2014", "zeiler2014-256")


@dataclass(frozen=True)
class PlotConfig(Config):
    """Options of `featx plot`."""

    heads: str | None = option(None, "Only these heads, with commas; by default all.", metavar="HEADS")
    reference: str | None = option(
        None, "Published numbers beside them: Zeiler & Fergus' Table 6, on Caltech-101 or Caltech-256.",
        choices=REFERENCES,
    )  # fmt: skip
    title: str | None = option(None, "Above the picture.", metavar="TEXT")
