"""Pictures with another number of bits than Pillow has modes for, by what their own header says.

tifffile and imagecodecs read the samples; here is what they mean: bits, sign, photometric interpretation,
transparency and orientation. docs/images.md has the table.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from featx.images.bad_image import MAX_PIXELS, MAX_SAMPLE_BYTES, BadImage
from featx.images.metadata import PNG_SIGNATURE, upright
from featx.status import Status

if TYPE_CHECKING:
    from tifffile import TiffPage

Samples = npt.NDArray[Any]

_BLOCK_SAMPLES = 1 << 22  # converted at a time: floats of 16 MB
_TIFF = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
_GREY, _COLOUR, _WITH_ALPHA = 4, 2, 6  # PNG's colour types; 4 is grey with alpha
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
_CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4}
_PREMULTIPLIED, _STRAIGHT = 1, 2
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 258, 262, 274, 339


def decode_high_depth(content: bytes, opened: Image.Image | None) -> Image.Image | None:
    """The RGB image of a file whose samples Pillow cannot represent; None if Pillow's own reading is right.

    Args:
        opened: what Pillow made of the header, pixels not read; None if it could not.

    Raises:
        BadImage: damaged, too large, or a variety without a defined meaning, which is named.
    """
    if (
        content.startswith(PNG_SIGNATURE)
        and content[24:25] == b"\x10"
        and content[25] in (_COLOUR, _GREY, _WITH_ALPHA)
    ):
        return _png_of_16_bits(content)
    if content[:4] in _TIFF and (opened is None or (opened.format == "TIFF" and _needs_samples(opened))):
        return _tiff(content)
    return None


def _needs_samples(opened: Image.Image) -> bool:
    """Whether a TIFF has anything but 8 unsigned bits, 1 bit, or a few bits of grey or palette."""
    tags: Any = opened.tag_v2  # type: ignore[attr-defined]  # of TIFF images
    bits = tuple(tags.get(_BITS, (1,)))
    kinds = tags.get(_SAMPLE_FORMAT, (1,))
    kinds = tuple(kinds) if isinstance(kinds, tuple | list) else (kinds,)
    few = bits in ((1,), (2,), (4,)) and tags.get(_PHOTOMETRIC) in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)
    return not (few or set(bits) == {8}) or not set(kinds) <= {1, 4}


def _png_of_16_bits(content: bytes) -> Image.Image:
    import imagecodecs

    try:
        samples: Samples = imagecodecs.png_decode(content)
    except (imagecodecs.PngError, ValueError) as error:
        raise BadImage(Status.DAMAGED, str(error)) from None
    clear = _clear_colour(content) if content[25] == _COLOUR else None
    colours = 1 if content[25] == _GREY else 3
    alpha = samples[..., colours] if samples.shape[2] > colours else None
    if clear is not None:
        alpha = np.where((samples[..., :3] == clear).all(axis=2), 0, 65535).astype(np.uint16)
    return _to_image(samples[..., :colours], (0.0, 65535.0), alpha, 65535.0)


def _clear_colour(content: bytes) -> Samples | None:
    """The one transparent colour of a truecolour PNG, 16 bits each."""
    offset = 8
    while offset + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, offset)
        if kind == b"IDAT":
            return None
        if kind == b"tRNS" and length == 6:
            return np.frombuffer(content, ">u2", 3, offset + 8)
        offset += 12 + length
    return None


def _tiff(content: bytes) -> Image.Image:
    import imagecodecs  # noqa: F401  # tifffile's codecs: without them LZW and JPEG cannot be read
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages.first
            _refuse_varieties(page)
            samples = page.asarray(maxworkers=1)
            return _image_of_page(page, samples)
    except BadImage:
        raise
    except MemoryError:
        raise
    except Exception as error:  # tifffile and its codecs raise almost anything on damaged files
        raise BadImage(Status.DAMAGED, " ".join(str(error).split()) or type(error).__name__) from None


def _refuse_varieties(page: TiffPage) -> None:
    width, height, channels = page.imagewidth, page.imagelength, page.samplesperpixel
    if width * height > MAX_PIXELS:
        raise BadImage(Status.TOO_LARGE, f"{width} x {height} pixels, more than {MAX_PIXELS} in all")
    if width < 1 or height < 1 or page.imagedepth != 1:
        raise BadImage(Status.UNSUPPORTED, f"a TIFF of {width} x {height} x {page.imagedepth} pixels")
    if page.nbytes > MAX_SAMPLE_BYTES:
        raise BadImage(Status.TOO_LARGE, f"unpacks to {page.nbytes} bytes, more than {MAX_SAMPLE_BYTES}")
    photometric = int(page.photometric)
    if photometric not in _CHANNELS:
        name = getattr(page.photometric, "name", str(page.photometric))
        raise BadImage(Status.UNSUPPORTED, f"a TIFF with {page.bitspersample} bits of {name}")
    if isinstance(page.bitspersample, tuple):
        raise BadImage(Status.UNSUPPORTED, f"a TIFF whose channels have {page.bitspersample} bits")
    if page.dtype is None or page.dtype.kind not in "uif":
        raise BadImage(Status.UNSUPPORTED, f"a TIFF with samples of format {page.sampleformat}")
    extra = channels - _CHANNELS[photometric]
    if extra < 0 or extra > 1:
        raise BadImage(Status.UNSUPPORTED, f"a TIFF of {channels} channels")


def _image_of_page(page: TiffPage, samples: Samples) -> Image.Image:
    if samples.ndim == 2:
        samples = samples[..., None]
    elif page.axes == "SYX":  # channels stored one after the other
        samples = np.moveaxis(samples, 0, -1)
    photometric, bits = int(page.photometric), int(page.bitspersample)
    colours = _CHANNELS[photometric]
    if samples.shape != (page.imagelength, page.imagewidth, page.samplesperpixel):
        raise BadImage(Status.UNSUPPORTED, f"a TIFF with axes {page.axes}")
    alpha, kind = None, next(iter(page.extrasamples or (0,)))
    if samples.shape[2] > colours and int(kind) in (_PREMULTIPLIED, _STRAIGHT):
        alpha = samples[..., colours]
    shown = samples[..., :colours]
    if photometric == PALETTE:
        table = np.asarray(page.colormap).T  # (2^bits, 3) of 16 bits
        shown, scale = table[np.minimum(shown[..., 0], len(table) - 1)], (0.0, 65535.0)
    else:
        scale = range_of(shown, bits)
    if photometric == WHITE_IS_ZERO:
        scale = scale[1], scale[0]
    top = 1.0 if alpha is None else range_of(alpha, bits)[1]
    if photometric == CMYK:
        inks = _to_bytes(shown, scale)
        image = Image.fromarray(inks, "CMYK").convert("RGB")
    else:
        image = _to_image(shown, scale, alpha, top, premultiplied=int(kind) == _PREMULTIPLIED)
    orientation = page.tags.get(_ORIENTATION)
    return upright(image, 1 if orientation is None else int(orientation.value))


def range_of(samples: Samples, bits: int) -> tuple[float, float]:
    """The values of black and of white.

    Unsigned integers of up to 16 bits: 0 and the largest number of those bits; signed ones too if none is negative.
    Of 32 bits and more: 0 and the smallest of 255, 65535 and the largest number that holds all. Floats: 0 and the
    smaller of 1 and 255 that holds all. What none of these holds: from the least to the greatest.

    Raises:
        BadImage: NaN, infinite, or all the same and out of range.
    """
    least, greatest = float(samples.min()), float(samples.max())
    if not (np.isfinite(least) and np.isfinite(greatest)):
        raise BadImage(Status.UNSUPPORTED, "float pixels that are NaN or infinite")
    largest = float(2 ** (bits - 1 if samples.dtype.kind == "i" else bits) - 1)
    tops = (1.0, 255.0) if samples.dtype.kind == "f" else (largest,) if bits <= 16 else (255.0, 65535.0, largest)
    for top in tops:
        if least >= 0 and greatest <= top:
            return 0.0, top
    if least == greatest:
        raise BadImage(Status.UNSUPPORTED, f"all pixels are {least:g}, outside of 0..{tops[-1]:g}")
    return least, greatest


def _to_image(
    colours: Samples, scale: tuple[float, float], alpha: Samples | None, top: float, *, premultiplied: bool = False
) -> Image.Image:
    """RGB of samples (H, W, 1 or 3), over white where they are transparent."""
    grey = _to_bytes(colours, scale, alpha, top, premultiplied=premultiplied)
    return Image.fromarray(grey[..., 0]).convert("RGB") if grey.shape[2] == 1 else Image.fromarray(grey)


def _to_bytes(
    colours: Samples,
    scale: tuple[float, float],
    alpha: Samples | None = None,
    top: float = 1.0,
    *,
    premultiplied: bool = False,
) -> npt.NDArray[np.uint8]:
    """(H, W, C) samples as 8 bits, rounded to the nearest."""
    black, white = scale
    result = np.empty(colours.shape, np.uint8)
    rows = max(1, _BLOCK_SAMPLES // max(1, colours.shape[1] * colours.shape[2]))
    for first in range(0, len(colours), rows):
        part = slice(first, first + rows)
        values = (colours[part].astype(np.float64) - black) / (white - black)
        if alpha is not None:
            share = alpha[part, :, None].astype(np.float64) / top
            values = (values if premultiplied else values * share) + (1 - share)
        result[part] = np.rint(np.clip(values, 0, 1) * 255)
    return result
