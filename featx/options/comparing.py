"""Options of the commands that compare representations: `featx rdm` and `featx similarity`."""

from __future__ import annotations

from dataclasses import dataclass

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
