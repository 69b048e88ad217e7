"""What became of an image, and what decoded it: the codes of /images/status and /images/decoder, and failures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Status(IntEnum):
    """The byte in /images/status: what became of an image."""

    PENDING = 0
    DONE = 1
    MISSING = 2
    UNREADABLE = 3
    EMPTY = 4
    NOT_AN_IMAGE = 5
    DAMAGED = 6
    TOO_LARGE = 7
    UNSUPPORTED = 8
    SPECIAL_FILE = 9
    TOO_SLOW = 10


class Decoder(IntEnum):
    """The byte in /images/decoder: what made the pixels."""

    PILLOW = 0
    NVJPEG = 1
    FAST = 2

    @property
    def title(self) -> str:
        """As people know it."""
        return {Decoder.PILLOW: "Pillow", Decoder.NVJPEG: "nvJPEG", Decoder.FAST: "libjpeg-turbo and PyTorch"}[self]


@dataclass(frozen=True)
class Failure:
    """An image that could not become features; its rows are NaN."""

    row: int
    path: str
    status: int
    reason: str
