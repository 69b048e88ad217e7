"""Options of `featx serve`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from featx.errors import UsageError
from featx.options.common import device_option, exif_option, preprocess_option, resize_option, squash_option
from featx.options.extraction import PRECISIONS
from featx.options.option import Config, option
from featx.options.parsing import parse_bytes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_named(value: Any) -> tuple[str, ...]:
    """NAME=PATH, once or several times.

    >>> parse_named(["birds=h.safetensors"])
    ('birds=h.safetensors',)
    """
    items: Sequence[str] = [value] if isinstance(value, str) else list(value)
    names = []
    for item in items:
        name, equals, path = item.partition("=")
        if not (equals and path and _NAME.fullmatch(name)):
            raise UsageError(
                f"{item!r} is not NAME=PATH, as birds=h.safetensors; a name has letters, digits, dots, dashes and "
                f"underscores"
            )
        names.append(name)
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the name {name!r} is given twice")
    return tuple(items)


DEFAULT_NETWORK = "alexnet"
_OF_NETWORK = frozenset({
    "backbone", "layers", "weights", "precision", "preprocess", "resize", "crop", "squash", "exif"
})  # fmt: skip


@dataclass(frozen=True)
class ServeConfig(Config):
    """Options of `featx serve`."""

    backbone: str | None = option(
        None, "Network: any torchvision classifier, or the folder of a fine-tuned one; by default alexnet, or with "
        "--run, --head or --index and no option about a network only theirs.", "-b", metavar="NET",
    )  # fmt: skip
    layers: str | None = option(
        None, "Layers to offer, as conv5,fc6-fc7; by default as featx extract.", "-l", metavar="LAYERS"
    )
    weights: str = option("default", "default, a torchvision name, a file, or random:SEED.", "-w", metavar="WEIGHTS")
    head: tuple[str, ...] = option(
        (), "A head to predict with; may be repeated.", parse=parse_named, metavar="NAME=FILE"
    )
    run: tuple[str, ...] = option(
        (), "A fine-tuned network to predict with; may be repeated.", parse=parse_named, metavar="NAME=FOLDER"
    )
    index: tuple[str, ...] = option(
        (), "A features file to find nearest images in; may be repeated.", parse=parse_named, metavar="NAME=FILE"
    )
    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for all.", metavar="ADDRESS")
    port: int = option(8000, "Port to listen on; 0 for any that is free.", low=0, high=65535, metavar="PORT")
    device: str = device_option()
    precision: str = option("fp32", "Arithmetic; tf32 and fp16 need a GPU.", choices=PRECISIONS)
    preprocess: str | None = preprocess_option()
    resize: int | None = resize_option()
    crop: int | None = option(
        None,
        "Side of the square that the network sees, instead of the weights' own.",
        low=1,
        high=8192,
        metavar="PIXELS",
    )
    squash: bool = squash_option()
    exif: bool = exif_option()
    workers: int | None = option(
        None, "Threads that decode and compute; by default one per core.", low=1, high=1024, metavar="N"
    )
    queue: int = option(256, "Images that may wait; more are refused with 429.", low=1, high=100_000, metavar="N")
    deadline: float = option(
        30.0, "Seconds until a request that is not answered is given up.", low=0.1, high=3600.0, metavar="SECONDS"
    )
    max_body: int = option(64 << 20, "Largest request, as 64M.", parse=parse_bytes, metavar="BYTES")
    image_timeout: float = option(
        10.0,
        "Seconds to decode one image; one that takes longer has failed.",
        low=0.1,
        high=3600.0,
        metavar="SECONDS",
    )
    read_timeout: float = option(
        10.0, "Seconds in which a sender must have sent something.", low=0.1, high=3600.0, metavar="SECONDS"
    )
    grace: float = option(
        25.0, "Seconds to answer the requests in hand after SIGTERM.", low=0.0, high=3600.0, metavar="SECONDS"
    )
    api_key_file: str | None = option(
        None, "Keys that may ask: a line NAME SHA256-OF-THE-KEY for each; without it everybody may.", metavar="FILE"
    )
    rate_limit: int | None = option(
        None, "Images per minute and key; more are refused with 429.", low=1, high=10**9, metavar="N"
    )
    allow_origin: str | None = option(
        None, "Web pages that may ask from a browser, as https://example.org.", metavar="ORIGIN"
    )

    @property
    def names_network(self) -> bool:
        """Whether a network is served for itself, not only those of heads, runs and indexes."""
        if not (self.head or self.run or self.index):
            return True
        return any(getattr(self, spec.name) != spec.default for spec in fields(self) if spec.name in _OF_NETWORK)
