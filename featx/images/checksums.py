"""Checksums of pixel data that the decoders do not compare."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from PIL import Image

from featx.images.bad_image import MAX_SAMPLE_BYTES, BadImage
from featx.status import Status

_AT_ONCE = 1 << 20  # bytes that are unpacked
_COMPRESSION, _DEFLATE = 259, (8, 32946)
_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, and of tiles


def refuse_broken_png(content: bytes) -> None:
    """Compare the checksums of a PNG's pixel data, which Pillow does not.

    Raises:
        BadImage: one does not match, or the file ends within a chunk.
    """
    offset = 8
    while offset + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, offset)
        end = offset + 8 + length
        if end + 4 > len(content):
            raise BadImage(Status.DAMAGED, f"the file ends within a chunk {kind!r}")
        if kind in (b"IDAT", b"PLTE", b"tRNS"):
            expected = int.from_bytes(content[end : end + 4], "big")
            if zlib.crc32(memoryview(content)[offset + 4 : end]) != expected:
                raise BadImage(Status.DAMAGED, f"the checksum of a chunk {kind!r} does not match")
        if kind == b"IEND":
            return
        offset = end + 4


def refuse_broken_tiff(content: bytes, opened: Image.Image) -> None:
    """Compare the checksums of a TIFF's deflated strips or tiles, which libtiff does not.

    Args:
        opened: by Pillow, pixels not read.

    Raises:
        BadImage: one does not match.
    """
    tags: Any = opened.tag_v2  # type: ignore[attr-defined]  # of TIFF images
    if tags.get(_COMPRESSION) not in _DEFLATE:
        return
    left = MAX_SAMPLE_BYTES
    for offsets, lengths in _PLACES:
        for offset, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False):
            left -= _unpacked(memoryview(content)[offset : offset + length], left)


def _unpacked(packed: memoryview, most: int) -> int:
    """How many bytes come out of a deflated strip, of `most` at most."""
    stream, size, rest = zlib.decompressobj(), 0, bytes(packed)
    try:
        while rest and not stream.eof and size < most:
            size += len(stream.decompress(rest, _AT_ONCE))
            rest = stream.unconsumed_tail
    except zlib.error as error:
        raise BadImage(Status.DAMAGED, f"the pixels of the TIFF are damaged: {error}") from None
    if not stream.eof and size < most:
        raise BadImage(Status.DAMAGED, "the pixels of the TIFF are damaged: they end before their checksum")
    return size
