"""Bytes of a file become an RGB image, or a stated failure. The decoder is Pillow.

Every kind of image has one defined conversion; see `to_rgb`. Nothing is guessed from a file's name.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
import warnings

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageFile, UnidentifiedImageError

from featx.images.bad_image import IMAGE_TIMEOUT_S, MAX_PIXELS, MAX_SAMPLE_BYTES, BadImage
from featx.images.checksums import refuse_broken_png, refuse_broken_tiff
from featx.images.high_depth import decode_high_depth
from featx.images.metadata import PNG_SIGNATURE, orientation_of, unsupported_variety, upright, without_metadata
from featx.images.processes.turns import Need, no_turns
from featx.status import Status

Image.init()  # Pillow knows only five formats until something makes it look for the others


ALLOWED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF")
FORMATS = tuple(name for name in ALLOWED_FORMATS if name in Image.OPEN)  # some builds have no AVIF


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


class _TimedContent(io.BytesIO):
    """The bytes of a file, until a decoder has had its time.

    A JPEG can hold thousands of scans of few bytes, each as much work as a whole picture: such a file is given out in
    small pieces, so that the time is looked at between them.
    """

    def __init__(self, content: bytes, timeout_s: float) -> None:
        super().__init__(content)
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        many_scans = content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MANY_SCANS
        self._at_once = _SMALL_PIECE if many_scans else len(content)

    def start(self) -> None:
        """Let the time begin now."""
        self._deadline = time.monotonic() + self._timeout_s

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._deadline:
            raise BadImage(Status.TOO_SLOW, f"not decoded within {self._timeout_s:g} s (--image-timeout)")
        return super().read(size if size is None or size < 0 else min(size, self._at_once))


_MANY_SCANS, _SMALL_PIECE = 100, 512


def open_image(content: bytes, timeout_s: float = IMAGE_TIMEOUT_S) -> Image.Image:
    """The image in some bytes, header read, pixels not yet.

    Comments, profiles and EXIF that Pillow cannot read are left aside: they say nothing about the pixels.

    Args:
        timeout_s: for all of its decoding.

    Raises:
        BadImage: no image of an allowed format, or more than 89 million pixels.
    """
    try:
        image = _open(content, timeout_s)
    except BadImage as bad:
        plain = without_metadata(content)
        if bad.status == Status.TOO_SLOW or plain is None or len(plain) == len(content):
            raise
        image = _open(plain, timeout_s)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(Status.TOO_LARGE, f"{width} x {height} pixels, more than {MAX_PIXELS} in all")
    if width < 1 or height < 1:
        raise BadImage(Status.DAMAGED, f"{width} x {height} pixels")
    return image


def _open(content: bytes, timeout_s: float) -> Image.Image:
    try:
        with pillow_settings():
            return Image.open(_TimedContent(content, timeout_s), formats=FORMATS)
    except BadImage:
        raise
    except UnidentifiedImageError:
        variety = unsupported_variety(content)
        if variety is not None:
            raise BadImage(Status.UNSUPPORTED, f"{variety}, which cannot be read") from None
        raise BadImage(Status.NOT_AN_IMAGE, f"no image of a known format; begins with {content[:8]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(Status.TOO_LARGE, str(error)) from None
    except Exception as error:  # Pillow's plugins raise almost anything on damaged headers
        raise BadImage(Status.DAMAGED, f"{type(error).__name__}: {error}") from None


def decode(
    content: bytes, *, exif: bool = False, timeout_s: float = IMAGE_TIMEOUT_S, need: Need = no_turns
) -> tuple[Image.Image, int]:
    """The RGB image in some bytes, and its EXIF orientation, applied only if `exif`.

    Args:
        need: is told how much memory its pixels take, before they do.

    Raises:
        BadImage: see `Status`.
    """
    with pillow_settings():
        return _decode(content, exif=exif, timeout_s=timeout_s, need=need)


def _decode(content: bytes, *, exif: bool, timeout_s: float, need: Need) -> tuple[Image.Image, int]:
    if content.startswith(PNG_SIGNATURE):
        refuse_broken_png(content)
    try:
        opened: Image.Image | None = open_image(content, timeout_s)
    except BadImage as bad:
        opened, reason = None, bad
    orientation = 1 if opened is None else orientation_of(opened)
    need(_memory_of(opened))
    if isinstance(opened, ImageFile.ImageFile) and isinstance(opened.fp, _TimedContent):
        opened.fp.start()  # waiting for a turn is not its fault
    if opened is not None and opened.format == "TIFF":
        refuse_broken_tiff(content, opened)
    image = decode_high_depth(content, opened)
    if image is None:
        if opened is None:
            raise reason
        image = _load(content, opened, timeout_s)
    return upright(image, orientation) if exif else image, orientation


def _memory_of(opened: Image.Image | None) -> int:
    """Bytes that the decoding of an image takes; most where Pillow cannot say what it is.

    JPEGs become RGB as they are. Others can need four channels three times, while transparency is put over white.
    """
    if opened is None:
        return MAX_SAMPLE_BYTES
    return opened.size[0] * opened.size[1] * (3 if opened.format == "JPEG" else 16)


def _load(content: bytes, image: Image.Image, timeout_s: float) -> Image.Image:
    """RGB of an opened image."""
    try:
        image.load()
        return to_rgb(as_meant(image, content))
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # as above: SyntaxError, struct.error, OSError, ValueError, ...
        plain = without_metadata(content)  # a comment behind the pixels is read with them
        if plain is not None and len(plain) < len(content):
            return _load(plain, _open(plain, timeout_s), timeout_s)
        variety = unsupported_variety(content)
        if variety is not None:
            raise BadImage(Status.UNSUPPORTED, f"{variety}, which cannot be read") from None
        raise BadImage(Status.DAMAGED, str(error) or type(error).__name__) from None


def as_meant(image: Image.Image, content: bytes) -> Image.Image:
    """A loaded image with what Pillow leaves as it stands in the file put right.

    The transparent value of a grey PNG of less than 8 bits is in the file's own units; of 8 bits only the lower byte
    counts. A BMP whose alpha bytes are all 0 has none: programs write 32 bits and leave the last 8 empty.
    """
    clear = image.info.get("transparency")
    if image.format == "PNG" and content.startswith(PNG_SIGNATURE):
        bits = content[24]
        if isinstance(clear, int) and bits <= 8 and image.mode in ("1", "L"):
            largest = 2**bits - 1
            image.info["transparency"] = (clear & largest) * 255 // largest
        elif isinstance(clear, tuple):
            image.info["transparency"] = tuple(value & 255 for value in clear)
    if image.format in ("BMP", "DIB") and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")
    return image


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
