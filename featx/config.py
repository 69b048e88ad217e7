"""One frozen dataclass per command: every option's default, range and help, written once.

The command line is built from these fields, the Python functions take them, and the output files store them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featx.errors import UsageError
from featx.options import Config, option, parse_bytes, parse_c, parse_fraction

HEADS = {"svm": "linear SVM", "softmax": "softmax"}
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
NORMALIZATIONS = ("none", "l2", "standard")


def _device() -> Any:
    return option("auto", "cpu, cuda, cuda:N, or auto: cuda where there is one.", metavar="DEVICE")


def _batch_size() -> Any:
    return option(
        None, "Images per forward pass; by default chosen from the network and device.", low=1, high=4096, metavar="N"
    )


def _decode() -> Any:
    return option(
        "cpu",
        "Who decodes JPEGs: cpu (Pillow, exact); fast (libjpeg-turbo and PyTorch, a level or two off); gpu (nvJPEG, "
        "likewise); auto (Pillow and nvJPEG, whoever is free).",
        choices=("cpu", "fast", "gpu", "auto"),
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


def _resize() -> Any:
    return option(
        None,
        "Shorter side in pixels before the crop, instead of the weights' own.",
        low=1,
        high=8192,
        metavar="PIXELS",
    )


def _squash() -> Any:
    return option(False, "Resize the whole image to the crop size, ignoring its aspect.")


def _exif() -> Any:
    return option(False, "Turn images as their EXIF orientation says.")


def _memory() -> Any:
    return option(
        None,
        "Memory the fit may use, as 4G or 512M; by default half of what is free. Larger features are streamed.",
        parse=parse_bytes,
        metavar="BYTES",
        recorded=False,
    )


def parse_heads(text: Any) -> str:
    """One or both heads.

    >>> parse_heads("svm,softmax")
    'svm,softmax'
    """
    if not set(str(text).split(",")) <= set(HEADS):
        raise UsageError(f"--heads is {text!r}; it can be svm, softmax or svm,softmax")
    return str(text)


def _c(when: str = "") -> Any:
    return option(
        None,
        f"Inverse regularisation as scikit-learn means it, or auto: cross-validated{when}.",
        parse=parse_c,
        metavar="C|auto",
    )


def _folds(behind: str) -> Any:
    return option(5, f"Folds of the cross-validation behind {behind}.", low=2, metavar="N")


def _normalize() -> Any:
    return option(
        "l2", "l2: every row to length 1; standard: every value to mean 0, deviation 1.", choices=NORMALIZATIONS
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
    decode: str = _decode()
    batch_size: int | None = _batch_size()
    resize: int | None = _resize()
    crop: int | None = option(
        None, "Side of the centre crop in pixels, instead of the weights' own.", low=1, high=8192, metavar="PIXELS"
    )
    squash: bool = _squash()
    exif: bool = _exif()
    mirror: bool = option(False, "Turn left and right of every image round.")
    plain: bool = option(False, "On a CPU, PyTorch's own operations: slower, and rounded as in training.")
    follow_links: bool = _follow_links()
    max_bad: float = _max_bad()
    workers: int | None = _workers()
    retry_failed: bool = option(False, "Try the images again that failed before.", recorded=False)
    shard: str | None = option(
        None,
        "Only part I of N, from 0 on, into FILE.I-of-N.h5; auto/N takes I from Slurm, Kubernetes or torchrun. "
        "`featx merge` joins the parts.",
        metavar="I/N",
        recorded=False,
    )


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
    c: float | None = _c()
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
    folds: int = _folds("--c auto and --calibrate")
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


@dataclass(frozen=True)
class ProbeConfig(Config):
    """Options of `featx probe`."""

    layers: str = option("all", "Layers to compare; by default all of the file.", "-l", metavar="LAYERS")
    heads: str = option("svm,softmax", "svm, softmax or both.", parse=parse_heads, metavar="HEADS")
    per_class: int = option(30, "Images of every class to train on.", low=1, metavar="N")
    test_per_class: int = option(50, "At most this many others of every class to test on.", low=1, metavar="N")
    repeats: int = option(10, "Random splits.", low=1, high=1000, metavar="N")
    c: float | None = _c(" in every repeat")
    folds: int = _folds("--c auto")
    normalize: str = _normalize()
    backbone: str = option("alexnet", "Network, if images are given.", "-b", metavar="NET")
    weights: str = option("default", "Its weights, if images are given.", "-w", metavar="WEIGHTS")
    pool: str = option("none", "Pooling of maps, if images are given.", metavar="POOL")
    device: str = _device()
    memory: int | None = _memory()
    seed: int = option(0, "Seed of the splits and folds.", low=0, high=2**31, metavar="N")


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """Options of `featx finetune`."""

    backbone: str = option("alexnet", "Network to start from, or the folder of an earlier run.", "-b", metavar="NET")
    weights: str = option("default", "Its weights, as for featx extract.", "-w", metavar="WEIGHTS")
    lr: str = option(
        "auto",
        "Rates: LAYERS=RATE,... as in conv1-conv5=0,fc6-fc7=1e-3,fc8=1e-2 (0: frozen; later ones win); or a policy: "
        "head, fc, all, decay:Q, gradual:EPOCHS, auto.",
        metavar="SPEC",
    )
    from_scratch: bool = option(False, "Start from random weights (then --lr is one rate for all layers).")
    epochs: int = option(10, "Times every image is seen.", low=1, high=100_000, metavar="N")
    batch_size: int = option(64, "Images per step, over all processes together.", low=1, high=65_536, metavar="N")
    accumulate: int = option(1, "Parts a process takes its share of a step in, to save memory.", low=1, metavar="N")
    init_head: str = option(
        "softmax",
        "Where the new final layer starts: at the optimum of a head on the frozen features, or random.",
        choices=("softmax", "svm", "random"),
    )
    optimizer: str = option("sgd", "sgd with momentum, or adamw.", choices=("sgd", "adamw"))
    momentum: float = option(0.9, "Of sgd.", low=0.0, high=0.9999, metavar="M")
    weight_decay: float = option(5e-4, "Pull of the weights towards 0.", low=0.0, high=1.0, metavar="DECAY")
    no_bias_decay: bool = option(False, "No weight decay for biases and norms.")
    schedule: str = option("cosine", "How all rates fall.", choices=("cosine", "step", "constant"))
    warmup: float = option(0.0, "Epochs in which all rates rise from 0.", low=0.0, high=1000.0, metavar="EPOCHS")
    label_smoothing: float = option(
        0.0, "Share of every label spread over all classes.", low=0.0, high=0.9, metavar="S"
    )
    class_weights: str = option("none", "balanced: rare classes count more.", choices=("none", "balanced"))
    dropout: float | None = option(None, "Instead of the network's own.", low=0.0, high=0.95, metavar="P")
    clip: float | None = option(None, "Longest gradient allowed.", low=1e-9, metavar="LENGTH")
    ema: float | None = option(
        None, "Keep a moving average of the weights with this memory, as 0.999.", low=0.0, high=0.99999, metavar="M"
    )
    augment: str = option(
        "auto",
        "Random changes: flip, crop[:SMALLEST], shift:PIXELS, jitter:STRENGTH, elastic:PIXELS, mixup[:ALPHA], "
        "cutmix[:ALPHA], with commas; none; "
        "auto: none if the first layers are frozen, else flip,crop.",
        metavar="WHAT",
    )
    cache_views: int = option(
        1, "With frozen first layers, train on their stored output for the images (1) and their mirror images (2).",
        low=1, high=2, metavar="N",
    )  # fmt: skip
    val: float | None = option(
        None,
        "Share of every class held out to choose the best epoch; 0.1 unless another split is asked for; 0: none.",
        parse=parse_fraction,
        metavar="SHARE",
    )
    split_column: bool = option(False, "Train on the source's split called train, validate on val or test.")
    patience: int | None = option(
        None, "Stop after so many epochs without a better validation accuracy.", low=1, metavar="EPOCHS"
    )
    precision: str = option("fp32", "Arithmetic: fp32, or bf16 with weights in fp32.", choices=("fp32", "bf16"))
    compile: bool = option(
        False, "Have torch.compile make kernels for the training's steps: a minute at the start, for long ones."
    )
    resize: int | None = _resize()
    crop: int | None = option(
        None, "Side of the input in pixels, instead of the weights' own.", low=1, high=8192, metavar="PIXELS"
    )
    squash: bool = _squash()
    exif: bool = _exif()
    follow_links: bool = _follow_links()
    max_bad: float = _max_bad()
    device: str = _device()
    workers: int | None = _workers()
    memory: int | None = option(
        None,
        "Memory for decoded images, as 4G; by default half of what is free. What does not fit is decoded each time.",
        parse=parse_bytes,
        metavar="BYTES",
        recorded=False,
    )
    checkpoint_minutes: float = option(
        5.0, "Time between checkpoints within an epoch.", low=0.0, high=10_000.0, metavar="MINUTES", recorded=False
    )
    seed: int = option(0, "Seed of everything random.", low=0, high=2**31, metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_column and self.val is not None:
            raise UsageError("--val and --split-column are different splits; choose one")
        if self.from_scratch and self.weights != "default":
            raise UsageError("--from-scratch starts from random weights; leave out --weights")


@dataclass(frozen=True)
class PredictConfig(Config):
    """Options of `featx predict`."""

    device: str = _device()
    decode: str = _decode()
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
    device: str = _device()
    batch_size: int | None = _batch_size()
    follow_links: bool = _follow_links()
    max_bad: float = _max_bad()
    workers: int | None = _workers()
