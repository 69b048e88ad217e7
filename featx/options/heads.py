"""The options of `featx fit-svm`, `fit-softmax` and `probe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featx.errors import UsageError
from featx.options.common import (
    c_option,
    class_weight_option,
    device_option,
    group_by_option,
    memory_option,
    preprocess_option,
    score_option,
)
from featx.options.option import Config, option
from featx.options.parsing import parse_c, parse_fraction

HEADS = {"svm": "linear SVM", "softmax": "softmax"}
BASELINES = {"mean": "nearest class mean", "knn": "5 nearest", "ridge": "ridge"}
PROBED = HEADS | BASELINES
NORMALIZATIONS = ("none", "l2", "standard")


def parse_heads(text: Any) -> str:
    """Heads and baselines of a probe.

    >>> parse_heads("svm, knn")
    'svm,knn'
    """
    asked = [word.strip() for word in str(text).split(",")]
    if not asked or not set(asked) <= set(PROBED):
        raise UsageError(f"--heads is {text!r}; it can be {', '.join(PROBED)}, or several with commas")
    return ",".join(dict.fromkeys(asked))


def parse_counts(text: Any) -> tuple[int, ...]:
    """Numbers of images, growing.

    >>> parse_counts("10,1,5")
    (1, 5, 10)
    """
    words = str(text).split(",")
    if not all(word.strip().isdigit() and 0 < int(word) < 10**6 for word in words):
        raise UsageError(f"{text!r} are no numbers of images; write them as 1,5,10")
    return tuple(sorted({int(word) for word in words}))


def _folds(behind: str) -> Any:
    return option(5, f"Folds of the cross-validation behind {behind}.", low=2, metavar="N")


def _normalize() -> Any:
    return option(
        "l2", "l2: every row to length 1; standard: every value to mean 0, deviation 1.", choices=NORMALIZATIONS
    )


@dataclass(frozen=True)
class FitConfig(Config):
    """Options of `featx fit-svm` and `featx fit-softmax`."""

    layer: str | None = option(
        None, "Layer of the file to train on; may be left out if there is only one.", "-l", metavar="LAYER"
    )
    c: float | None = c_option()
    normalize: str = _normalize()
    test: float | None = option(
        None,
        "Share of every class held out for the report; 0.2 unless another split is asked for; 0: none.",
        parse=parse_fraction,
        metavar="SHARE",
    )
    split_column: bool = option(False, "Use the split stored in the file (train / test).")
    per_class: int | None = option(
        None, "Train on this many images of every class, test on the rest.", low=1, metavar="N"
    )
    group_by: str | None = group_by_option()
    near_duplicates: float | None = option(
        None, "Keep images together whose features have this cosine or more, as 0.95, the mean of all taken first; "
        "of such a group all train, or none.", low=0.0, high=1.0, metavar="COSINE",
    )  # fmt: skip
    class_weight: str | None = class_weight_option()
    score: str | None = score_option("C")
    folds: int = _folds("--c auto and --calibrate")
    calibrate: str = option(
        "none",
        "Probabilities for an SVM, learnt on held-out folds: one temperature, or Platt's sigmoid per class.",
        choices=("none", "temperature", "platt"),
    )
    device: str = device_option()
    memory: int | None = memory_option()
    keep_products: str | None = option(
        None, "Keep the products of the n training images, 4 n^2 bytes, in this folder: the next fit on the same "
        "ones reads them instead of multiplying again.", metavar="FOLDER", recorded=False,
    )  # fmt: skip
    seed: int = option(0, "Seed of the split and the folds.", low=0, high=2**32 - 1, metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = [
            name
            for name, given in {
                "--test": self.test is not None,
                "--split-column": self.split_column,
                "--per-class": self.per_class is not None,
            }.items()
            if given
        ]
        if len(asked) > 1:
            raise UsageError(f"{' and '.join(asked)} are different splits; choose one")
        if self.group_by is not None and (self.per_class is not None or self.split_column):
            raise UsageError("--group-by is for a share that is held out at random, --test, and for folds")


@dataclass(frozen=True)
class FuseConfig(Config):
    """Options of `featx fuse`."""

    c: float | None = option(
        1.0, "Inverse regularisation of the SVM on the scores, or auto: cross-validated.", parse=parse_c,
        metavar="C|auto",
    )  # fmt: skip
    test: float | None = option(
        None, "Share of every class held out for the report; 0.2 unless another split is asked for.",
        parse=parse_fraction, metavar="SHARE",
    )  # fmt: skip
    split_column: bool = option(False, "Use the split stored in the file (train / test).")
    per_class: int | None = option(
        None, "Train on this many images of every class, test on the rest.", low=1, metavar="N"
    )
    group_by: str | None = group_by_option()
    folds: int = _folds("--c auto")
    seed: int = option(0, "Seed of the split and of the folds.", low=0, high=2**32 - 1, metavar="N")


@dataclass(frozen=True)
class ProbeConfig(Config):
    """Options of `featx probe`."""

    layers: str = option("all", "Layers to compare; by default all of the file.", "-l", metavar="LAYERS")
    heads: str = option(
        "svm,softmax", "svm, softmax; and baselines: mean (nearest class mean), knn (5 nearest), ridge; with commas.",
        parse=parse_heads, metavar="HEADS",
    )  # fmt: skip
    per_class: int = option(30, "Images of every class to train on.", low=1, metavar="N")
    curve: str | None = option(
        None, "Learning curves: also train on so many images of every class, as 1,2,5,10,20.", metavar="COUNTS"
    )
    test_per_class: int = option(50, "At most this many others of every class to test on.", low=1, metavar="N")
    repeats: int = option(10, "Random splits.", low=1, high=1000, metavar="N")
    c: float | None = c_option(" in every repeat")
    folds: int = _folds("--c auto")
    normalize: str = _normalize()
    backbone: str = option("alexnet", "Network, if images are given.", "-b", metavar="NET")
    weights: str = option("default", "Its weights, if images are given.", "-w", metavar="WEIGHTS")
    preprocess: str | None = preprocess_option()
    pool: str = option("none", "Pooling, as for featx extract, if images are given.", metavar="POOL")
    dense: int | None = option(
        None, "Dense evaluation, as for featx extract, if images are given.", low=1, high=8192, metavar="PIXELS"
    )
    device: str = device_option()
    memory: int | None = memory_option()
    seed: int = option(0, "Seed of the splits and folds.", low=0, high=2**31, metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curve is not None and parse_counts(self.curve)[-1] >= self.per_class:
            raise UsageError(f"--curve {self.curve}: its numbers must be below --per-class {self.per_class}")
