"""A block of images: pixels, and what became of each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featx.status import Decoder, Status


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file, and how many pixels they are."""

    content: bytes | bytearray
    pixels: int


@dataclass
class Block:
    """Rows first .. first + B - 1 of a manifest, decoded, or kept for the device to decode.

    Attributes:
        pixels: (batch_size, 3, V * S, S) uint8, the V views of an image one below the other, channels last in memory;
            failed images and rows past the end are zero.
        status: (B,) uint8, see `Status`: DONE or a kind of failure.
        sha256: (B, 32) uint8 of the files' bytes; zero where there were none.
        reasons: row in the block -> why it failed.
        orientation: (B,) uint8, EXIF orientation, 1 = upright.
        decoder: (B,) uint8, see `Decoder`.
        encoded: row in the block -> a file that the device may decode, its pixels zero; None if nothing was to be
            kept.
        read_s, decode_s, device_decode_s: seconds spent.
    """

    first: int
    pixels: npt.NDArray[np.uint8]
    status: npt.NDArray[np.uint8]
    sha256: npt.NDArray[np.uint8]
    reasons: dict[int, str]
    orientation: npt.NDArray[np.uint8]
    decoder: npt.NDArray[np.uint8]
    encoded: dict[int, Encoded] | None
    read_s: float = 0.0
    decode_s: float = 0.0
    device_decode_s: float = 0.0


def empty_block(count: int, size: int, shape: tuple[int, int], *, keep_encoded: bool) -> Block:
    """`count` images, all of them well, before anything is known of them; pixels (height, width) for `size`."""
    return Block(
        0,
        pixels=np.zeros((size, *shape, 3), np.uint8).transpose(0, 3, 1, 2),
        status=np.full(count, Status.DONE, np.uint8),
        sha256=np.zeros((count, 32), np.uint8),
        reasons={},
        orientation=np.ones(count, np.uint8),
        decoder=np.full(count, Decoder.PILLOW, np.uint8),
        encoded={} if keep_encoded else None,
    )


def parts_of(block: Block, *, pixels: bool) -> list[memoryview]:
    """The memory of a block that processes hand over, in this order; of the pixels only the block's own images."""
    own = block.pixels.transpose(0, 2, 3, 1)[: len(block.status)]
    arrays = [block.status, block.sha256, block.orientation, block.decoder, *([own] if pixels else [])]
    return [array.reshape(-1).data for array in arrays]
