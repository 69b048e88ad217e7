"""Images in memory: whatever a program holds them as becomes an RGB image, or a stated failure."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from featx.errors import UsageError
from featx.images.bad_image import BadImage
from featx.images.block import Block, empty_block
from featx.images.decode import to_rgb
from featx.images.metadata import ORIENTATION_TAG, orientation_of, upright
from featx.images.preprocess import TooElongated
from featx.images.processes.turns import Need, no_turns
from featx.images.reader import BlockDecoder
from featx.images.sources.read import read_file
from featx.runtime.text import printable
from featx.status import Status

if TYPE_CHECKING:
    from torch import Tensor

ACCEPTED = (
    "a path, the bytes of an image file, an open file, a PIL image, a NumPy array (H, W), (H, W, 3) or (H, W, 4) of "
    "uint8, uint16 (0 to 65535) or floats from 0 to 1, or a torch tensor (3, H, W) of uint8 or floats from 0 to 1"
)
COLOURS = (3, 4)


def is_one_image(images: Any) -> bool:
    """Whether this is a single image, not several."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image):
        return True
    if isinstance(images, np.ndarray):
        return images.ndim == 2 or (images.ndim == 3 and images.shape[2] in COLOURS)
    return (is_tensor(images) and images.ndim == 3) or hasattr(images, "read")


def is_tensor(image: Any) -> TypeGuard[Tensor]:
    """Whether this is a torch tensor, or of a kind derived from it, without loading torch."""
    return any(one.__module__.startswith("torch") and one.__name__ == "Tensor" for one in type(image).__mro__)


def as_list(images: Any) -> list[Any]:
    """Several images, or one, as a list of images.

    Raises:
        UsageError: it is neither.
    """
    if is_one_image(images):
        return [images]
    if isinstance(images, np.ndarray) and (images.ndim == 3 or (images.ndim < 2 and images.dtype.kind in "biufc")):
        raise UsageError(
            f"an array of shape {images.shape} is neither one image (H, W), (H, W, 3), (H, W, 4) nor several"
            f"{_hint(images.shape)}"
        )
    if is_tensor(images) and images.ndim != 4:
        raise UsageError(
            f"a tensor of shape {tuple(images.shape)} is neither one image (3, H, W) nor several (N, 3, H, W)"
        )
    if isinstance(images, set | frozenset):
        raise UsageError("a set has no order, and rows follow the order of the images; give a list")
    if isinstance(images, Iterable):
        return list(images)
    raise UsageError(f"{type(images).__name__} is not an image; an image is {ACCEPTED}")


def _hint(shape: tuple[int, ...]) -> str:
    """What to do about an array that is no image, where its shape shows it."""
    if len(shape) < 2:
        return "; give the pixels in their shape, not flattened"
    if shape[-1] == 1:
        return "; take the last axis off: array[..., 0]"
    if shape[-3] in COLOURS:
        return "; are the colours first? They belong last: numpy.moveaxis(array, -3, -1)"
    return "; give grey images as a list of (H, W)"


class InputDecoder(BlockDecoder):
    """Decodes images in memory in blocks, exactly as a `BlockReader` decodes the files of a source."""

    def images(self, images: Sequence[Any], *, size: int, keep_encoded: bool = False) -> Block:
        """A block of images, with pixels for `size` of them."""
        block = empty_block(len(images), size, self.preprocess.shape, keep_encoded=keep_encoded)
        for place, image in enumerate(images):
            self.put(block, place, image)
        return block

    def put(self, block: Block, place: int, image: Any) -> None:
        """Decode one image into its place of a block."""
        with self.turns.image() as need:
            self._image(block, place, image, need)

    def _image(self, block: Block, place: int, image: Any, need: Need) -> None:
        started = time.perf_counter()
        try:
            content = _content_of(image, need)
            if content is None:
                pixels, block.orientation[place] = _pillow_image(image)
                if self.exif:
                    pixels = upright(pixels, block.orientation[place])
                block.pixels[place] = self.preprocess.pixels(pixels)
                return
        except BadImage as bad:
            block.status[place], block.reasons[place] = bad.status, str(bad)
            return
        except TooElongated as bad:
            block.status[place], block.reasons[place] = Status.TOO_LARGE, str(bad)
            return
        self.decode_into(block, place, content, need)
        block.decode_s += time.perf_counter() - started


def name_of(image: Any, place: int) -> str:
    """What to call an image in a message: its path if it has one, else its place."""
    if isinstance(image, str | os.PathLike):
        return printable(os.fspath(image))
    name = getattr(image, "filename", None) or getattr(image, "name", None)
    return printable(str(name)) if name and isinstance(name, str) else f"image {place}"


def encoded(image: Any) -> bytes:
    """An image as a file: its own bytes, or for pixels in memory a PNG of what they become, with their orientation.

    Raises:
        BadImage: it is none, or cannot be read.
    """
    content = _content_of(image, no_turns)
    if content is None:
        pixels, orientation = _pillow_image(image)
        exif = Image.Exif()
        if orientation != 1:
            exif[ORIENTATION_TAG] = orientation
        out = io.BytesIO()
        pixels.save(out, "PNG", compress_level=1, exif=exif)
        content = out.getvalue()
    return content


def _content_of(image: Any, need: Need) -> bytes | None:
    """The bytes of an encoded image; None for pixels."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image) or _empty()
    if isinstance(image, str | os.PathLike):
        return read_file(Path(image), need)
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        return _read(image)
    return None


def _read(file: IO[bytes]) -> bytes:
    try:
        content = file.read()
    except Exception as error:  # closed, a connection that broke, whatever a program calls a file
        raise BadImage(Status.UNREADABLE, f"{type(error).__name__}: {error}") from None
    if not isinstance(content, bytes):
        raise BadImage(Status.UNREADABLE, "the file is open as text; open it with mode 'rb'")
    return content or _empty()


def _empty() -> bytes:
    raise BadImage(Status.EMPTY, "the file has no bytes")


def _pillow_image(image: Any) -> tuple[Image.Image, int]:
    """An RGB image of pixels in memory, and the EXIF orientation that a PIL image brings along, not applied."""
    if isinstance(image, Image.Image):
        return _rgb_of_pillow(image)
    if is_tensor(image):
        image = _array_of(image)
    if isinstance(image, np.ma.MaskedArray):
        raise BadImage(Status.UNSUPPORTED, "a masked array; fill what is masked first: array.filled(0)")
    if not isinstance(image, np.ndarray):
        raise BadImage(Status.NOT_AN_IMAGE, f"{type(image).__name__} is not an image; an image is {ACCEPTED}")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in COLOURS)):
        raise BadImage(
            Status.UNSUPPORTED,
            f"an array of shape {image.shape}; it must be (H, W), (H, W, 3) or (H, W, 4){_hint(image.shape)}",
        )
    if 0 in image.shape:
        raise BadImage(Status.EMPTY, f"an array of shape {image.shape} has no pixels")
    return to_rgb(Image.fromarray(_eight_bits(image))), 1


def _rgb_of_pillow(image: Image.Image) -> tuple[Image.Image, int]:
    if 0 in image.size:
        raise BadImage(Status.EMPTY, f"a PIL image of {image.size[0]} x {image.size[1]} pixels")
    # The image may be listed twice and is loaded at its first use: two threads must not do that at once.
    with _LOADING[id(image) // 64 % len(_LOADING)]:
        try:
            image.load()
            return to_rgb(image), orientation_of(image)
        except (BadImage, MemoryError):
            raise
        except Exception as error:  # closed, or cut off: Pillow's plugins raise almost anything
            raise BadImage(Status.DAMAGED, f"{type(error).__name__}: {error}") from None


_LOADING = [threading.Lock() for _ in range(64)]  # an image always has the same one


def _array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """(H, W, 3) of a tensor (3, H, W)."""
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise BadImage(Status.UNSUPPORTED, f"a tensor of shape {tuple(tensor.shape)}; it must be (3, H, W)")
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy().transpose(1, 2, 0)
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, without memory
        raise BadImage(Status.UNSUPPORTED, f"a tensor without plain pixels: {str(error).splitlines()[0]}") from None


def _eight_bits(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The same pixels as uint8: uint16 divided by 257, floats from 0 to 1 multiplied by 255, both rounded."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:  # in either order of bytes
        return np.rint(pixels / 257.0).astype(np.uint8)
    if pixels.dtype.kind == "f":
        least, greatest = float(pixels.min()), float(pixels.max())
        if not 0 <= least <= greatest <= 1:
            hint = "divide by 255?" if least >= 0 and 1 < greatest <= 255 else "already normalised? Give raw pixels"
            hint = "NaN?" if np.isnan(pixels).any() else hint
            raise BadImage(
                Status.UNSUPPORTED, f"float pixels from {least:g} to {greatest:g}; they must be from 0 to 1 ({hint})"
            )
        return np.rint(pixels * 255.0).astype(np.uint8)
    raise BadImage(
        Status.UNSUPPORTED, f"pixels of type {pixels.dtype}; they must be uint8, uint16, or floats from 0 to 1"
    )


def of_table(image: Mapping[str, Any]) -> Any:
    """What a data set's {"bytes": ..., "path": ...} holds: its bytes, or else the file it names."""
    return image.get("path") or b"" if image.get("bytes") is None else image["bytes"]
