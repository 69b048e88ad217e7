"""JPEGs decoded by the GPU (nvJPEG), resized and cropped there: faster than Pillow, and a level or two away from it.

nvJPEG repeats the nearest chroma value where libjpeg interpolates, and the resize is rounded once, not after each
direction. So these pixels are never the default, and the features file says of every row which decoder made it.

The decoders are torchcodec's. On a CPU the same code runs through its libjpeg-turbo: that is how it is tested where
there is no GPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import io
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from featx.errors import DeviceUnavailable
from featx.images.block import Encoded
from featx.images.preprocess import Preprocess, resized_size


class NotDecodable(Exception):
    """The device's decoder has refused a batch; it does not say which image it was."""


_PIXELS_AT_ONCE = 48 << 20  # decoded, stacked and as floats they take 19 bytes each: 1 GB in all
_DECODERS = 4  # batches under way at once, each in a decoder of its own on the stream of its thread
_START_OF_SCAN, _END_OF_IMAGE, _APP1, _COMMENT = 0xDA, 0xD9, 0xE1, 0xFE  # markers of a JPEG
Decode = Callable[..., list[Tensor]]


class DeviceDecoder:
    """JPEG files -> pixels (n, 3, S, S) uint8 on a device; for several threads, each with a stream of its own."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        """Try it on a tiny image.

        Raises:
            DeviceUnavailable: torchcodec cannot decode on this device.
        """
        self._preprocess, self._device = preprocess, device
        self._decode_jpeg = load_decoder()
        self._turn = threading.Semaphore(_DECODERS)
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG")
        try:
            self([Encoded(file.getvalue(), 256)])
        except NotDecodable as error:
            raise DeviceUnavailable(
                f"torchcodec {importlib.metadata.version('torchcodec')} cannot decode JPEGs on {device}: {error}. "
                "Use --decode cpu"
            ) from error

    def __call__(self, files: Sequence[Encoded]) -> Tensor:
        """The pixels, channels last in memory, in the order given, on the current stream of the device.

        Raises:
            NotDecodable: one of the files is not a JPEG for this decoder, which one is not known; or memory is short.
        """
        try:
            with self._turn:
                return torch.cat([
                    resize_and_crop(self.decode([file.content for file in part]), self._preprocess)
                    for part in _portions(files)
                ])  # fmt: skip
        except RuntimeError as error:  # OutOfMemoryError is one of them
            raise NotDecodable(str(error).splitlines()[0]) from error

    def decode(self, contents: Sequence[bytes | bytearray]) -> list[Tensor]:
        """(3, H, W) uint8 on the device, each of its own size."""
        return self._decode_jpeg([_as_tensor(content) for content in contents], mode="RGB", device=self._device)


@functools.cache
def load_decoder() -> Decode:
    """torchcodec's `decode_jpeg`, of a list of encoded images.

    Raises:
        DeviceUnavailable: it is not installed, or not for this PyTorch.
    """
    try:
        found: Decode = importlib.import_module("torchcodec.decoders").decode_jpeg
    except (ImportError, OSError, RuntimeError) as error:  # such as libraries of CUDA beside a PyTorch without it
        reason = str(error).partition("\n")[0]
        raise DeviceUnavailable(
            f"torchcodec, which decodes with --decode fast, auto and gpu, cannot be loaded: {reason}. "
            "Install it from where PyTorch came from, or use --decode cpu"
        ) from error
    return found


def _as_tensor(content: bytes | bytearray) -> Tensor:
    """A copy of the file, as PyTorch wants it, without the EXIF by which torchcodec would turn the image.

    `Preprocess` and `--exif` say what is turned, and Pillow does it.
    """
    copy = bytearray(content)
    place = 2
    while place + 4 <= len(copy):
        marker = copy[place + 1]
        if copy[place] != 0xFF or marker == 0xFF:  # decoders pass over what stands between segments
            place += 1
        elif marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # these have no length
            place += 2
        else:
            if marker == _APP1:
                copy[place + 1] = _COMMENT
            place += 2 + int.from_bytes(copy[place + 2 : place + 4], "big")
    return torch.frombuffer(copy, dtype=torch.uint8)


def fast_pixels(content: bytes, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """(3, S, S) of one JPEG, decoded by libjpeg-turbo and resized in levels by PyTorch, on the CPU.

    Raises:
        NotDecodable: it is not a JPEG for this decoder.
        DeviceUnavailable: torchcodec cannot be loaded.
    """
    try:
        (image,) = load_decoder()([_as_tensor(content)], mode="RGB")
    except RuntimeError as error:
        raise NotDecodable(str(error).splitlines()[0]) from error
    cut = _centre(_resized(image[None], preprocess, in_levels=True), preprocess.crop)[0]
    found: npt.NDArray[np.uint8] = (cut.flip(2) if preprocess.mirror else cut).numpy()
    return found


def _portions(files: Sequence[Encoded]) -> list[list[Encoded]]:
    """Cut so that each has few enough pixels to be decoded at once."""
    found: list[list[Encoded]] = []
    room = 0
    for file in files:
        if file.pixels > room:
            found.append([])
            room = _PIXELS_AT_ONCE
        found[-1].append(file)
        room -= file.pixels
    return found


def resize_and_crop(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """What `Preprocess.pixels` does, in floating point and on the device the images lie on.

    Args:
        images: (3, H, W) uint8 each, of any sizes; those of one size are resized together.

    Returns:
        (n, 3, S, S) uint8, channels last in memory; within a level or two of Pillow's.
    """
    side = preprocess.crop
    pixels = torch.zeros(len(images), side, side, 3, dtype=torch.uint8, device=images[0].device).permute(0, 3, 1, 2)
    places_of: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        places_of[image.shape[1], image.shape[2]].append(place)
    for places in places_of.values():
        resized = _resized(torch.stack([images[place] for place in places]), preprocess)
        cut = _centre(resized, side)
        cut = cut.flip(3) if preprocess.mirror else cut
        for place, image in zip(places, cut, strict=True):  # an index tensor would have to be waited for
            pixels[place] = image
    return pixels


def _resized(images: Tensor, preprocess: Preprocess, *, in_levels: bool = False) -> Tensor:
    """Args:

    in_levels: in integers, rounded after each direction, which only a CPU can; else in floating point.
    """
    height, width = images.shape[2:]
    if preprocess.squash:
        size = (preprocess.crop, preprocess.crop)
    else:
        new_width, new_height = resized_size((width, height), preprocess.resize)
        size = (new_height, new_width)
    if size == (height, width):
        return images
    if in_levels:
        return F.interpolate(images, size, mode=preprocess.interpolation, antialias=True, align_corners=False)
    found = F.interpolate(images.float(), size, mode=preprocess.interpolation, antialias=True, align_corners=False)
    return found.round_().clamp_(0, 255).to(torch.uint8)


def _centre(images: Tensor, side: int) -> Tensor:
    """The central side x side pixels, black where the image is smaller; the same rounding as `centre_crop`."""
    height, width = images.shape[2:]
    if width < side or height < side:
        left, top = max(0, (side - width) // 2), max(0, (side - height) // 2)
        right, bottom = max(0, side - width - left), max(0, side - height - top)
        images = F.pad(images, (left, right, top, bottom))
        height, width = images.shape[2:]
    left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return images[:, :, top : top + side, left : left + side]
