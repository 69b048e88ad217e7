"""JPEGs decoded by the GPU (nvJPEG), resized and cropped there: faster than Pillow, and a level or two away from it.

nvJPEG repeats the nearest chroma value where libjpeg interpolates, and the resize is rounded once, not after each
direction. So these pixels are never the default, and the features file says of every row which decoder made it.

On a CPU the same code runs through torchvision's libjpeg-turbo: that is how it is tested where there is no GPU.
"""

from __future__ import annotations

import threading
import warnings
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from featx.images.preprocess import Preprocess, resized_size


class NotDecodable(Exception):
    """The device's decoder has refused a batch; it does not say which image it was."""


class DeviceDecoder:
    """Bytes of JPEGs -> pixels (n, 3, S, S) uint8 on a device; one batch at a time, whichever thread brings it."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._preprocess, self._device = preprocess, device
        self._turn = threading.Lock()

    def __call__(self, contents: Sequence[bytes]) -> Tensor:
        """The pixels, channels last in memory, in the order given.

        Work is queued on the current stream of the device.

        Raises:
            NotDecodable: one of the files is no JPEG for this decoder; which one is not known.
        """
        return resize_and_crop(self._decode(contents), self._preprocess)

    def _decode(self, contents: Sequence[bytes]) -> list[Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg

        with warnings.catch_warnings():
            # torchvision 0.29 points to torchcodec, which reads the same library; bytes are read-only, and only read.
            warnings.simplefilter("ignore")
            encoded = [torch.frombuffer(content, dtype=torch.uint8) for content in contents]
        with self._turn:
            if self._device.type == "cuda":
                # The hardware engine does not wait for the stream: memory that it is given may still be read by
                # kernels queued before.
                torch.cuda.current_stream(self._device).synchronize()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found: list[Tensor] = decode_jpeg(encoded, ImageReadMode.RGB, device=self._device)
            except RuntimeError as error:
                raise NotDecodable(str(error)) from error
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
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
        pixels[torch.tensor(places, device=pixels.device)] = cut.flip(3) if preprocess.mirror else cut
    return pixels


def _resized(images: Tensor, preprocess: Preprocess) -> Tensor:
    height, width = images.shape[2:]
    if preprocess.squash:
        size = (preprocess.crop, preprocess.crop)
    else:
        new_width, new_height = resized_size((width, height), preprocess.resize)
        size = (new_height, new_width)
    if size == (height, width):
        return images
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
