"""The options of `featx finetune`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from featx.errors import UsageError
from featx.options.common import (
    device_option,
    exif_option,
    fit_option,
    follow_links_option,
    grey_option,
    group_by_option,
    interpolation_option,
    max_bad_option,
    mean_option,
    pad_color_option,
    preprocess_option,
    resize_option,
    score_option,
    squash_option,
    std_option,
    workers_option,
)
from featx.options.option import Config, option
from featx.options.parsing import parse_bytes, parse_epochs, parse_fraction


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
    without: str | None = option(
        None, "Take these layers out of AlexNet, VGG and networks made like them, as conv3,conv4; with "
        "--from-scratch.", metavar="LAYERS",
    )  # fmt: skip
    widen: str | None = option(
        None, "Multiply the units of layers, as fc6x2,fc7x2; with --from-scratch.", metavar="LAYERxFACTOR"
    )
    continue_epochs: int | None = option(
        None, "Go on with the finished run that -b names for so many epochs, in a new folder: its classes, its final "
        "layer, and its options where none are given.", "--continue", low=1, high=100_000, metavar="EPOCHS",
    )  # fmt: skip
    epochs: int = option(10, "Passes over the training images.", low=1, high=100_000, metavar="N")
    batch_size: int = option(64, "Images per step, over all processes together.", low=1, high=65_536, metavar="N")
    accumulate: int = option(1, "Parts a process takes its share of a step in, to save memory.", low=1, metavar="N")
    init_head: str = option(
        "softmax",
        "Where the new final layer starts: at the optimum of a head on the frozen features, or random.",
        choices=("softmax", "svm", "random"),
    )
    optimizer: str = option("sgd", "sgd with momentum, or adamw.", choices=("sgd", "adamw"))
    momentum: float = option(0.9, "Of sgd.", low=0.0, high=0.9999, metavar="M")
    weight_decay: float = option(5e-4, "Weight decay: L2 penalty of the weights.", low=0.0, high=1.0, metavar="DECAY")
    no_bias_decay: bool = option(False, "No weight decay for biases and norms.")
    schedule: str = option("cosine", "How all rates fall.", choices=("cosine", "step", "constant"))
    warmup: float = option(0.0, "Epochs in which all rates rise from 0.", low=0.0, high=1000.0, metavar="EPOCHS")
    label_smoothing: float = option(
        0.0, "Share of every label spread over all classes.", low=0.0, high=0.9, metavar="S"
    )
    task: str = option(
        "classes", "What labels are: classes, several of an image where they are written a|b; or values, numbers to "
        "be predicted, as 1.5 or 1.5|20.", choices=("classes", "values"),
    )  # fmt: skip
    class_weights: str = option(
        "none", "How much the images of each class count in the loss: balanced, as much for every class; or a CSV "
        "file with the columns class,weight.", "--class-weight", metavar="none|balanced|FILE",
    )  # fmt: skip
    score: str | None = score_option("the best epoch", "--class-weights")
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
    group_by: str | None = group_by_option()
    split_column: bool = option(False, "Train on the source's split called train, validate on val, or else test.")
    patience: int | None = option(
        None, "Stop after so many epochs without a better validation accuracy.", low=1, metavar="EPOCHS"
    )
    precision: str = option("fp32", "Arithmetic: fp32, or bf16 with weights in fp32.", choices=("fp32", "bf16"))
    compile: bool = option(
        False, "Have torch.compile make kernels for the training's steps: a minute at the start, for long ones."
    )
    preprocess: str | None = preprocess_option()
    resize: int | None = resize_option()
    crop: int | None = option(
        None, "Side of the input in pixels, instead of the weights' own.", low=1, high=8192, metavar="PIXELS"
    )
    squash: bool = squash_option()
    fit: str | None = fit_option()
    pad_color: str | None = pad_color_option()
    mean: str | None = mean_option()
    std: str | None = std_option()
    interpolation: str | None = interpolation_option()
    grey: bool = grey_option()
    exif: bool = exif_option()
    follow_links: bool = follow_links_option()
    max_bad: float = max_bad_option()
    device: str = device_option()
    workers: int | None = workers_option()
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
    snapshots: str | None = option(
        None, "Keep the weights at the end of these epochs too, 0 for the start, as 0,1,2,5; featx show evolution "
        "draws them.", metavar="EPOCHS",
    )  # fmt: skip
    log: str = option(
        "none", "tensorboard: the measures of every epoch as event files too, in FOLDER/tensorboard.",
        choices=("none", "tensorboard"), recorded=False,
    )  # fmt: skip
    seed: int = option(0, "Seed of everything random.", low=0, high=2**31, metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_column and self.val is not None:
            raise UsageError("--val and --split-column are different splits; choose one")
        if self.split_column and self.group_by is not None:
            raise UsageError("--group-by is for a share that is held out at random, --val; leave out --split-column")
        if self.snapshots is not None and parse_epochs(self.snapshots)[-1] > self.epochs:
            raise UsageError(f"--snapshots {self.snapshots}: the training ends after --epochs {self.epochs}")
        if not self.from_scratch and (self.without or self.widen):
            flag = "--without" if self.without else "--widen"
            raise UsageError(f"{flag} makes another network, which has no weights yet; it needs --from-scratch")
        if self.continue_epochs is not None and (self.from_scratch or self.weights != "default"):
            raise UsageError("--continue goes on with the weights of the run that -b names")
        if self.from_scratch and self.weights != "default":
            raise UsageError("--from-scratch starts from random weights; leave out --weights")


@dataclass(frozen=True)
class LrFindConfig(FinetuneConfig):
    """Options of `featx lr-find`: those of the training it is for, and its own."""

    steps: int = option(200, "Steps of the test.", low=20, high=100_000, metavar="N")
    lowest: float = option(1e-4, "First factor on the rates.", low=1e-12, high=1e6, metavar="FACTOR")
    highest: float = option(1e3, "Last factor on the rates.", low=1e-12, high=1e6, metavar="FACTOR")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lowest >= self.highest:
            raise UsageError(f"--lowest {self.lowest:g} must be below --highest {self.highest:g}")
        defaults = LR_FIND_IDLE
        given = [name for name, default in defaults.items() if getattr(self, name) != default]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{flags}: no effect in lr-find, which trains for --steps alone and keeps nothing")


LR_FIND_IDLE = {
    spec.name: spec.default
    for spec in fields(FinetuneConfig)
    if spec.name
    in ("epochs", "continue_epochs", "schedule", "warmup", "ema", "patience", "score", "snapshots", "log")
}
