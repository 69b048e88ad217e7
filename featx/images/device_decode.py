"""JPEGs decoded by the GPU (nvJPEG), resized and cropped there: faster than Pillow, and a level or two away from it.

nvJPEG repeats the nearest chroma value where libjpeg interpolates, and the resize is rounded once, not after each
direction. So these pixels are never the default, and the features file says of every row which decoder made it.

On a CPU the same code runs through torchvision's libjpeg-turbo: that is how it is tested where there is no GPU.
"""

from __future__ import annotations

import importlib.metadata
import io
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


class DeviceDecoder:
    """JPEG files -> pixels (n, 3, S, S) uint8 on a device; one batch at a time, whichever thread brings it."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        """Try it on a tiny image.

        Raises:
            DeviceUnavailable: this torchvision cannot decode on this device.
        """
        self._preprocess, self._device = preprocess, device
        self._turn = threading.Lock()
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG")
        try:
            with quiet_torchvision():
                self([Encoded(file.getvalue(), 256)])
        except NotDecodable as error:
            raise DeviceUnavailable(
                f"torchvision {importlib.metadata.version('torchvision')} cannot decode JPEGs on {device}: {error}. "
                "Use --decode cpu"
            ) from error

    def __call__(self, files: Sequence[Encoded]) -> Tensor:
        """The pixels, channels last in memory, in the order given, on the current stream of the device.

        To be called within `quiet_torchvision`.

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
        # Writable copies: PyTorch warns of those that are not.
        writable = [content if isinstance(content, bytearray) else bytearray(content) for content in contents]
        encoded = [torch.frombuffer(content, dtype=torch.uint8) for content in writable]
        if self._device.type == "cuda":
            # The hardware engine does not wait for the stream: memory that it is given may still be read by kernels
            # queued before.
            torch.cuda.current_stream(self._device).synchronize()
        from torchvision.io import ImageReadMode, decode_jpeg

        found: list[Tensor] = decode_jpeg(encoded, ImageReadMode.RGB, device=self._device)
        return found


def fast_pixels(content: bytes, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """(3, S, S) of one JPEG, decoded by libjpeg-turbo and resized in levels by PyTorch, on the CPU.

    To be called within `quiet_torchvision`.

    Raises:
        NotDecodable: it is not a JPEG for this decoder.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        image: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
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


@contextmanager
def quiet_torchvision() -> Iterator[None]:
    """Silence torchvision's word that its decoders are deprecated, while threads are at work in here.

    Its successor torchcodec calls the same library; it would be one more thing to install.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torchvision")
        yield


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
