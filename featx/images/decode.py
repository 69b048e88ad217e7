"""Bytes of a file become an RGB image, or a stated failure. The decoder is Pillow.

Every kind of image has one defined conversion; see `to_rgb`. Nothing is guessed from a file's name.
"""

from __future__ import annotations

import contextlib
import errno
import io
import lzma
import os
import stat
import struct
import threading
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from featx.status import Status

Image.init()  # Pillow knows only five formats until something makes it look for the others


ALLOWED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF")
FORMATS = tuple(name for name in ALLOWED_FORMATS if name in Image.OPEN)  # some builds have no AVIF
MAX_FILE_BYTES = 1 << 30
MAX_PIXELS = 89_478_485  # Pillow's own threshold: a quarter of a gibibyte as RGB
ORIENTATION_TAG = 0x0112


class BadImage(Exception):
    """This image cannot become pixels: the kind of failure, and the reason in one line."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _PillowSettings:
    """Pillow's process-wide settings as featx needs them, while anything of featx decodes; a host's are put back."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._before: tuple[int | None, bool] = (MAX_PIXELS, False)
        self._warnings: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self._before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
            # A picture of which only a part arrived is refused.
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = MAX_PIXELS, False
            self._warnings = warnings.catch_warnings()
            self._warnings.__enter__()
            # What they mean for a feature is stated as a failure or conversion.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._warnings is not None:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = self._before
                self._warnings.__exit__(None, None, None)
                self._warnings = None


_SETTINGS = _PillowSettings()


def pillow_settings() -> contextlib.AbstractContextManager[None]:
    """Pillow with featx's limits and without warnings inside; to be entered by any number of threads."""
    return _SETTINGS


def decoder_version() -> str:
    """What made the pixels, for the file's provenance."""
    return f"Pillow {PIL.__version__}"


def read_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        BadImage: missing, unreadable, empty, larger than 1 GiB, or a FIFO, socket or device.
    """
    try:
        # Without O_NONBLOCK the opening of a FIFO waits for ever for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BadImage(Status.MISSING, "no such file") from None
    except OSError as error:
        status = Status.SPECIAL_FILE if error.errno == errno.ENXIO else Status.UNREADABLE  # a socket
        raise BadImage(status, error.strerror or str(error)) from None
    with open(descriptor, "rb", buffering=0) as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise BadImage(Status.SPECIAL_FILE, "not a regular file")
        if info.st_size > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"the file has {info.st_size} bytes, more than {MAX_FILE_BYTES}")
        try:
            return _not_empty(file.readall())
        except OSError as error:
            raise BadImage(Status.UNREADABLE, error.strerror or str(error)) from None


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a zip's member; BadImage as for `read_file`."""
    try:
        info = archive.getinfo(name)
        if info.file_size > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"unpacks to {info.file_size} bytes, more than {MAX_FILE_BYTES}")
        return _not_empty(archive.read(info))
    except KeyError:
        raise BadImage(Status.MISSING, "no such member of the zip") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed by an unknown method
        raise BadImage(Status.UNREADABLE, str(error)) from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise BadImage(Status.DAMAGED, str(error)) from None


def _not_empty(content: bytes) -> bytes:
    if not content:
        raise BadImage(Status.EMPTY, "the file has no bytes")
    return content


def open_image(content: bytes) -> Image.Image:
    """The image in some bytes, header read, pixels not yet.

    Raises:
        BadImage: no image of an allowed format, or more than 89 million pixels.
    """
    try:
        with pillow_settings():
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage(Status.NOT_AN_IMAGE, f"no image of a known format; begins with {content[:8]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(Status.TOO_LARGE, str(error)) from None
    except Exception as error:  # Pillow's plugins raise almost anything on damaged headers
        raise BadImage(Status.DAMAGED, f"{type(error).__name__}: {error}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(Status.TOO_LARGE, f"{width} x {height} pixels, more than {MAX_PIXELS} in all")
    if width < 1 or height < 1:
        raise BadImage(Status.DAMAGED, f"{width} x {height} pixels")
    return image


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 if there is none or it is nonsense.

    TIFF's own orientation is part of that format, and Pillow applies it in any case: it counts as upright.
    """
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    return value if value in range(1, 9) else 1


def decode(content: bytes, *, exif: bool = False) -> tuple[Image.Image, int]:
    """The RGB image in some bytes, and its EXIF orientation, applied only if `exif`.

    Raises:
        BadImage: see `Status`.
    """
    with pillow_settings():
        return _decode(content, exif=exif)


def _decode(content: bytes, *, exif: bool) -> tuple[Image.Image, int]:
    image = open_image(content)
    orientation = orientation_of(image)
    if image.format == "PNG":
        refuse_broken_png(content)
    try:
        image.load()
        if exif and orientation != 1:
            image = ImageOps.exif_transpose(image)
        return to_rgb(image), orientation
    except BadImage:
        raise
    except MemoryError:
        raise
    except Exception as error:  # as above: SyntaxError, struct.error, OSError, ValueError, ...
        raise BadImage(Status.DAMAGED, str(error) or type(error).__name__) from None


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


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any Pillow image.

    Grey is repeated; palettes are looked up; transparency is put over white; CMYK and the other colour spaces go
    through Pillow's conversion; 16-bit is divided by 257; 32-bit integers and floats see `_scaled`. Of an
    animation it is the first frame.

    Raises:
        BadImage: pixels whose range means nothing: NaN, infinite, or all the same and out of range.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = Image.fromarray(_scaled(image))
        clear = image.info.get("transparency")
        if isinstance(clear, int):  # one value of a 16-bit PNG that stands for transparent
            grey.paste(255, mask=Image.fromarray(np.asarray(image) == clear))
        return grey.convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(image: Image.Image) -> npt.NDArray[np.uint8]:
    """(H, W) of an image with more than 8 bits, brought to 0..255 and rounded, never clipped.

    16-bit, and PNG and PNM always: 0..65535. Other integers: 0..255 or 0..65535, the smaller that holds them.
    Floats: 0..1 or 0..255, the smaller that holds them. What none of these holds: from its least to its greatest.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadImage(Status.UNSUPPORTED, "float pixels that are NaN or infinite")
    least, greatest = float(values.min()), float(values.max())
    tops = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        tops = (65535.0, 65535.0)
    for top in tops:
        if least >= 0 and greatest <= top:
            return np.rint(values * (255.0 / top)).astype(np.uint8)
    if least == greatest:
        raise BadImage(Status.UNSUPPORTED, f"all pixels are {least:g}, outside of 0..{tops[-1]:g}")
    return np.rint((values - least) * (255.0 / (greatest - least))).astype(np.uint8)
