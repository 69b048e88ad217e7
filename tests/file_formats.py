"""Writers of small PNG, TIFF, BMP and PNM files, from the formats' own specifications: no image library is used."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png(samples: np.ndarray, bits: int, colour: int, *, clear: tuple[int, ...] = (), palette: bytes = b"",
        palette_alpha: bytes = b"", extra: bytes = b"") -> bytes:  # fmt: skip
    """A PNG of samples (H, W, C); PNG 1.2, sections 3 and 4.

    Args:
        colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        clear: the transparent sample values, for tRNS.
        extra: chunks that stand before the pixels.
    """
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + pack_bits(row.reshape(-1), bits) for row in samples)
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)) + extra
    if palette:
        chunks += chunk(b"PLTE", palette)
    if clear or palette_alpha:
        chunks += chunk(b"tRNS", palette_alpha or struct.pack(f">{len(clear)}H", *clear))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Unsigned values, most significant bit first, the last byte filled with zeros."""
    if bits % 8 == 0:
        return values.astype(f">u{bits // 8}").tobytes()
    places = (values[:, None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(places.reshape(-1).astype(np.uint8)).tobytes()


SHORT, LONG = 3, 4


def tiff(samples: np.ndarray, bits: int, photometric: int, *, order: str = "<", sample_format: int = 1,
         extra: int | None = None, planar: bool = False, orientation: int = 1, colormap: np.ndarray | None = None,
         big: bool = False, compression: int = 1) -> bytes:  # fmt: skip
    """A TIFF in one strip of samples (H, W, C); TIFF 6.0.

    Args:
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK.
        sample_format: 1 unsigned, 2 signed, 3 floating point.
        extra: 0 unspecified, 1 premultiplied, 2 straight alpha in the last channel.
        planar: one channel after the other.
        compression: 1 none, 8 deflate.
    """
    height, width, channels = samples.shape
    ordered = np.moveaxis(samples, -1, 0) if planar else samples
    if sample_format == 1 and bits % 8:
        data = b"".join(pack_bits(row.reshape(-1), bits) for row in ordered)
    else:
        data = ordered.astype(f"{order}{'?uif'[sample_format]}{bits // 8}").tobytes()
    if compression == 8:
        data = zlib.compress(data)
    parts = np.array_split(np.frombuffer(data, np.uint8), channels) if planar else [np.frombuffer(data, np.uint8)]
    sizes = [len(part) for part in parts]
    start = 16 if big else 8
    offsets = [start + sum(sizes[:i]) for i in range(len(sizes))]
    tags = {256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [bits] * channels), 259: (SHORT, [compression]),
            262: (SHORT, [photometric]), 273: (LONG, offsets), 274: (SHORT, [orientation]), 277: (SHORT, [channels]),
            278: (LONG, [height]), 279: (LONG, sizes), 284: (SHORT, [2 if planar else 1]),
            339: (SHORT, [sample_format] * channels)}  # fmt: skip
    if extra is not None:
        tags[338] = (SHORT, [extra])
    if colormap is not None:
        tags[320] = (SHORT, [int(v) for v in colormap.T.reshape(-1)])
    body = data + b"\0" * (len(data) % 2)
    entry_size, inline, word = (20, 8, "Q") if big else (12, 4, "I")
    ifd = start + len(body)
    entries, behind = b"", b""
    end = ifd + (8 if big else 2) + entry_size * len(tags) + (8 if big else 4)
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        if len(packed) > inline:
            where = struct.pack(order + word, end + len(behind))
            behind += packed
        else:
            where = packed.ljust(inline, b"\0")
        entries += struct.pack(f"{order}HH{word}", tag, kind, len(values)) + where
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, ifd) if big else struct.pack(order + "HI", 42, ifd))
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    return head + body + count + entries + struct.pack(order + word, 0) + behind


def bmp(
    pixels: np.ndarray, *, header: int = 40, bits: int = 32, masks: tuple[int, int, int, int] | None = None
) -> bytes:
    """A BMP of packed pixels (H, W) of 16 or 32 bits.

    Args:
        header: bytes of the header: 40 is V3, 108 V4, 124 V5.
        masks: of red, green, blue and alpha; without them the plain layout.
    """
    height, width = pixels.shape
    rows = b"".join(
        row.astype(f"<u{bits // 8}").tobytes().ljust(-(-width * bits // 32) * 4, b"\0") for row in pixels[::-1]
    )
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, 3 if masks else 0, len(rows), 2835, 2835, 0, 0)
    if masks:
        info += struct.pack("<4I" if header > 40 else "<3I", *masks[: 4 if header > 40 else 3])
    info = info.ljust(header, b"\0")
    start = 14 + len(info)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + info + rows
