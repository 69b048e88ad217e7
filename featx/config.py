"""One frozen dataclass per command: every option's default, range and help, written once.

The command line is built from these fields, the Python functions take them, and the output files store them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from featx.errors import UsageError


def option(
    default: Any,
    help: str,
    *flags: str,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    parse: Callable[[Any], Any] | None = None,
    metavar: str | None = None,
    recorded: bool = True,
) -> Any:
    """A dataclass field that knows how to be a command line option.

    `recorded=False` marks options that can never change a result (workers, tolerance for bad files): they
    are left out of the stored plan, so that changing them never blocks a resume.
    """
    metadata = {
        "help": help,
        "flags": flags,
        "choices": choices,
        "low": low,
        "high": high,
        "parse": parse,
        "metavar": metavar,
        "recorded": recorded,
    }
    return field(default=default, metadata=metadata)


def flag_of(spec: Field[Any]) -> str:
    """The long option of a config field: `batch_size` is `--batch-size`."""
    return "--" + spec.name.replace("_", "-")


def parse_fraction(text: Any) -> float:
    """A share of the images, as `0.05` or `5%`.

    >>> parse_fraction("5%"), parse_fraction("0.05"), parse_fraction(1)
    (0.05, 0.05, 1.0)
    """
    try:
        value = float(str(text).rstrip("%")) / (100 if str(text).endswith("%") else 1)
    except ValueError:
        raise UsageError(f"{text!r} is not a share; write 0.05 or 5%") from None
    if not 0 <= value <= 1:
        raise UsageError(f"{text!r} is not a share between 0 and 1; write 0.05 or 5%")
    return value


def parse_bytes(text: Any) -> int:
    """A number of bytes, as `4G`, `512M` or `4000000000`.

    >>> parse_bytes("1.5G"), parse_bytes("512M"), parse_bytes(4000000)
    (1500000000, 512000000, 4000000)
    """
    found = re.fullmatch(r"([0-9.]+) ?([kMGT]?)B?", str(text).strip())
    try:
        value = float(found[1]) * 1000 ** " kMGT".index(found[2] or " ") if found else 0.0
    except ValueError:
        value = 0.0
    if not 1e6 <= value < 1e16:
        raise UsageError(f"{text!r} is no amount of memory; write 4G or 512M, at least 1M")
    return int(value)


def parse_c(text: Any) -> float | None:
    """The inverse regularisation C: a number above 0, or None for `auto`.

    >>> parse_c("auto"), parse_c("0.5")
    (None, 0.5)
    """
    if text is None or text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"C is {text!r}; it must be a number above 0, or auto") from None
    if not 0 < value < float("inf"):
        raise UsageError(f"C is {text}; it must be a number above 0, or auto")
    return value


@dataclass(frozen=True)
class Config:
    """Base of the commands' options: checks every field against its own range and choices."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.metadata.get("parse") is not None and value != spec.default:
                value = spec.metadata["parse"](value)
                object.__setattr__(self, spec.name, value)
            _check(spec, value)

    def recorded(self) -> dict[str, Any]:
        """The options that can change a result, as they were given."""
        return {s.name: getattr(self, s.name) for s in fields(self) if s.metadata.get("recorded", True)}


def _check(spec: Field[Any], value: Any) -> None:
    choices, low, high = (spec.metadata.get(key) for key in ("choices", "low", "high"))
    if value is None:
        if spec.default is None:
            return
        raise UsageError(f"{flag_of(spec)} needs a value")
    if choices and value not in choices:
        raise UsageError(f"{flag_of(spec)} is {value!r}; choose from {', '.join(choices)}")
    if (low is not None and value < low) or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high:g}"
        raise UsageError(f"{flag_of(spec)} is {value}; it must be at least {low:g}{upper}")


def defaults_of(config: type[Config]) -> dict[str, Any]:
    """Option name -> default value."""
    return {spec.name: spec.default for spec in fields(config) if spec.default is not MISSING}


PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
NORMALIZATIONS = ("none", "l2", "standard")


def _device() -> Any:
    return option("auto", "cpu, cuda, cuda:N, or auto: cuda where there is one.", metavar="DEVICE")


def _batch_size() -> Any:
    return option(
        None, "Images per forward pass; by default chosen from the network and device.", low=1, high=4096, metavar="N"
    )


def _workers() -> Any:
    return option(
        None,
        "Threads that read, decode and compute; by default one per core.",
        low=1,
        high=1024,
        metavar="N",
        recorded=False,
    )


def _max_bad() -> Any:
    return option(
        0.01,
        "Largest share of images that may fail before the run stops: 0.05 or 5%.",
        parse=parse_fraction,
        metavar="SHARE",
        recorded=False,
    )


def _follow_links() -> Any:
    return option(False, "Follow links to folders (off: a link can lead in circles).")


def _memory() -> Any:
    return option(
        None,
        "Memory the fit may use, as 4G or 512M; by default half of what is free. Larger features are streamed.",
        parse=parse_bytes,
        metavar="BYTES",
    )


@dataclass(frozen=True)
class ExtractConfig(Config):
    """Options of `featx extract`."""

    backbone: str = option("alexnet", "Network: alexnet, vgg16, or any torchvision classifier.", "-b", metavar="NET")
    layers: str = option(
        "fc7",
        "Layers: names, ranges (conv1-conv5), globs (conv5_*), all; separated by commas.",
        "-l",
        metavar="LAYERS",
    )
    weights: str = option(
        "default",
        "default, a torchvision weights name, a .pth or .safetensors file, or random:SEED.",
        "-w",
        metavar="WEIGHTS",
    )
    pool: str = option("none", "Pooling of maps: none, avg, max, flatten, or spp:1,2,4.", metavar="POOL")
    precision: str = option("fp32", "Arithmetic of the network.", choices=PRECISIONS)
    dtype: str = option("float32", "Number type in the file.", choices=("float32", "float16"))
    device: str = _device()
    batch_size: int | None = _batch_size()
    resize: int | None = option(
        None,
        "Shorter side in pixels before the crop, instead of the weights' own.",
        low=1,
        high=8192,
        metavar="PIXELS",
    )
    crop: int | None = option(
        None, "Side of the centre crop in pixels, instead of the weights' own.", low=1, high=8192, metavar="PIXELS"
    )
    squash: bool = option(False, "Resize the whole image to the crop size, ignoring its aspect.")
    exif: bool = option(False, "Turn images as their EXIF orientation says.")
    follow_links: bool = _follow_links()
    max_bad: float = _max_bad()
    workers: int | None = _workers()
    retry_failed: bool = option(False, "Try the images again that failed before.", recorded=False)


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
    layers: str = option("fc7", "Layers to estimate disk for.", "-l", metavar="LAYERS")
    follow_links: bool = _follow_links()
    workers: int | None = _workers()


@dataclass(frozen=True)
class VerifyConfig(Config):
    """Options of `featx verify`."""

    rows: int = option(64, "How many rows to recompute, chosen at random.", low=1, metavar="N")
    seed: int = option(0, "Seed of the choice of rows.", low=0, high=2**32 - 1, metavar="N")
    source: str | None = option(
        None, "Where the images are now, if they have moved since the extraction.", metavar="PATH"
    )
    weights: str | None = option(
        None, "Where the weights file is now, if it has moved since the extraction.", metavar="FILE"
    )


@dataclass(frozen=True)
class FitConfig(Config):
    """Options of `featx fit-svm` and `featx fit-softmax`."""

    layer: str | None = option(
        None, "Layer of the file to train on; may be left out if there is only one.", "-l", metavar="LAYER"
    )
    c: float | None = option(
        None,
        "Inverse regularisation as scikit-learn means it, or auto: cross-validated.",
        parse=parse_c,
        metavar="C|auto",
    )
    normalize: str = option(
        "l2",
        "l2: every row to length 1; standard: every value to mean 0, deviation 1.",
        choices=NORMALIZATIONS,
    )
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
    folds: int = option(5, "Folds of the cross-validation behind --c auto and --calibrate.", low=2, metavar="N")
    calibrate: str = option(
        "none",
        "Probabilities for an SVM, learnt on held-out folds: one temperature, or Platt's sigmoid per class.",
        choices=("none", "temperature", "platt"),
    )
    device: str = _device()
    memory: int | None = _memory()
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


def parse_heads(text: Any) -> str:
    """One or both heads.

    >>> parse_heads("svm,softmax")
    'svm,softmax'
    """
    heads = str(text).split(",")
    if not set(heads) <= {"svm", "softmax"}:
        raise UsageError(f"--heads is {text!r}; it can be svm, softmax or svm,softmax")
    return str(text)


@dataclass(frozen=True)
class ProbeConfig(Config):
    """Options of `featx probe`."""

    layers: str = option("all", "Layers to compare; by default all of the file.", "-l", metavar="LAYERS")
    heads: str = option("svm,softmax", "svm, softmax or both.", parse=parse_heads, metavar="HEADS")
    per_class: int = option(30, "Images of every class to train on.", low=1, metavar="N")
    test_per_class: int = option(50, "At most this many others of every class to test on.", low=1, metavar="N")
    repeats: int = option(10, "Random splits.", low=1, high=1000, metavar="N")
    c: float | None = option(
        None,
        "Inverse regularisation as scikit-learn means it, or auto: cross-validated in every repeat.",
        parse=parse_c,
        metavar="C|auto",
    )
    folds: int = option(5, "Folds of the cross-validation behind --c auto.", low=2, metavar="N")
    normalize: str = option(
        "l2",
        "l2: every row to length 1; standard: every value to mean 0, deviation 1.",
        choices=NORMALIZATIONS,
    )
    backbone: str = option("alexnet", "Network, if images are given.", "-b", metavar="NET")
    weights: str = option("default", "Its weights, if images are given.", "-w", metavar="WEIGHTS")
    pool: str = option("none", "Pooling of maps, if images are given.", metavar="POOL")
    device: str = _device()
    memory: int | None = _memory()
    seed: int = option(0, "Seed of the splits and folds.", low=0, high=2**31, metavar="N")


@dataclass(frozen=True)
class PredictConfig(Config):
    """Options of `featx predict`."""

    device: str = _device()
    batch_size: int | None = _batch_size()
    weights: str | None = option(
        None, "Where the weights file is now, if it has moved since the head was fitted.", metavar="FILE"
    )
    follow_links: bool = _follow_links()
    max_bad: float = _max_bad()
    workers: int | None = _workers()


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """Options of `featx evaluate`."""

    split: str | None = option(None, "Only the images of this split, as stored in the file.", metavar="NAME")


def command_line(verb: str, source: str, config: Config) -> str:
    """The command a config stands for, without the options that cannot change a result.

    >>> command_line("extract", "SOURCE", ExtractConfig(backbone="vgg16", squash=True))
    'featx extract SOURCE --backbone vgg16 --squash'
    """
    words = ["featx", verb, source]
    given = config.recorded()
    for spec in fields(config):
        if spec.name in given and given[spec.name] != spec.default:
            value = given[spec.name]
            words += [flag_of(spec)] if value is True else [flag_of(spec), str(value)]
    return shlex.join(words)
