"""Everything featx raises on purpose.

FeatxError                      exit  when
├── UsageError                     2  the request itself cannot be carried out
│   ├── UnknownBackbone
│   ├── UnknownLayer
│   ├── DeviceUnavailable             a GPU was asked for and there is none
│   ├── SourceError                   the folder, list, CSV or zip cannot be used as it is
│   ├── FileFormatError               a features or head file is not one, or is damaged
│   │   └── NonFiniteRow              features to train on hold NaN or infinite values
│   └── LabelError                    the labels do not allow what was asked
├── WeightsUnavailable             1  a download failed; trying again later may work
├── WeightsMismatch                4  a checkpoint does not fit the network, or its hash is wrong
├── PlanMismatch                   4  the output was made with other settings
│   └── FeaturesMismatch              a head was given features of another layer or network
├── ImageError                     3  an image given to the library cannot be used
├── TooManyBadImages               3  more failures than --max-bad allows
├── VerificationFailed             5  recomputed rows differ from the file
├── OutOfMemory                    1  the GPU has too little memory even for one image
├── Diverged                       1  a training's loss has become NaN or infinite
├── DiskError                     74  not enough space, or the disk refused
└── Interrupted             75/130/143  stopped half-way; the same command resumes

The numeric layers say what is wrong, the commands add which file, layer and image, and `cli.py` prints one line
and chooses the exit status.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_LONGEST, _BEGINNING, _END = 1500, 900, 400  # characters of a message of one line


class FeatxError(Exception):
    """Base of all errors featx raises on purpose; `exit_status` is what the command line returns."""

    exit_status = 1

    def __str__(self) -> str:
        r"""The message, with control characters as \x.. and the middle of one that is too long left out.

        Names in it may come from a file that somebody else made.
        """
        text = super().__str__()
        if len(text) > _LONGEST and "\n" not in text:
            text = f"{text[:_BEGINNING]} ... {text[-_END:]}"
        return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class UsageError(FeatxError):
    """The request cannot be carried out as it stands."""

    exit_status = 2


class UnknownBackbone(UsageError):
    """No network of that name."""


class UnknownLayer(UsageError):
    """The network has no layer of that name."""


class DeviceUnavailable(UsageError):
    """The device asked for is not there. featx never falls back to another one."""


class SourceError(UsageError):
    """The folder, list, CSV or zip cannot be used as it is."""


class FileFormatError(UsageError):
    """A features or head file is not one, or is damaged."""


class NonFiniteRow(FileFormatError):
    """Features to train on hold NaN or infinite values; `row` says where."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} of the features to train on holds NaN or infinite values")
        self.row = row


class LabelError(UsageError):
    """The labels do not allow what was asked."""


class WeightsUnavailable(FeatxError):
    """Published weights could not be fetched."""


class WeightsMismatch(FeatxError):
    """A checkpoint does not fit the network, holds code, or does not have the hash it should."""

    exit_status = 4


class OutOfMemory(FeatxError):
    """The GPU has too little memory even for one image."""


class Diverged(FeatxError):
    """The loss of a training has become NaN or infinite."""


class PlanMismatch(FeatxError):
    """The output file belongs to another plan than the one asked for."""

    exit_status = 4


class FeaturesMismatch(PlanMismatch):
    """A head was given features of another layer, network or preprocessing."""


class ImageError(FeatxError):
    """An image given to an Extractor or a Predictor cannot be used; `failures` says which and why."""

    exit_status = 3

    def __init__(self, message: str, failures: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.failures = list(failures)


class TooManyBadImages(FeatxError):
    """More images failed than --max-bad allows."""

    exit_status = 3


class VerificationFailed(FeatxError):
    """Recomputed rows differ from what the file holds."""

    exit_status = 5


class DiskError(FeatxError):
    """Not enough space, or the disk refused to read or write."""

    exit_status = 74


class Interrupted(FeatxError):
    """Stopped half-way with everything finished so far kept; the same command resumes."""

    exit_status = 75

    def __init__(self, message: str, exit_status: int = 75) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def bad_allowed(share: float, images: int) -> int:
    """How many of so many images may be bad."""
    return math.floor(share * images + 1e-9)  # 29 % of 100 is 28.999999999999996


def allow_more(bad: int, images: int) -> str:
    """The option that lets a run with so many bad images through.

    >>> allow_more(3, 23)
    '--max-bad 14%'
    """
    return f"--max-bad {math.ceil(100 * bad / images)}%"
