"""From an RGB image to the pixels a network was trained on, exactly as torchvision does it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from featx.errors import UsageError
from featx.images.decode import pillow_settings

MAX_RESIZED_PIXELS = 1 << 26  # 64 Mpx: a 1 x 10,000 image resized to 256 pixels' width would be far beyond


class TooElongated(ValueError):
    """Resizing the shorter side would make the longer one absurd."""


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, scale and normalise.

    Attributes:
        resize: shorter side after the resize, in pixels; ignored with `squash`.
        crop: side of the square that is cut from the centre; smaller images get a black border.
        squash: resize to crop x crop without keeping the aspect.
        interpolation: "bilinear" or "bicubic", both with antialias.
        mirror: flip the image horizontally, at the end.
        mean, std: of the three colours, after scaling to 0..1.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False
    mirror: bool = False

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Preprocess:
        """From plain values, as stored in a file's provenance."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def values(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def overridden(self, *, resize: int | None, crop: int | None, squash: bool, mirror: bool = False) -> Preprocess:
        """With the user's own sizes in place of the weights'."""
        if squash and resize is not None:
            raise UsageError("--squash resizes to the crop size; leave out --resize")
        changed = replace(self, resize=resize or self.resize, crop=crop or self.crop, squash=squash, mirror=mirror)
        if not squash and changed.crop > changed.resize:
            if resize is not None:
                raise UsageError(
                    f"--crop {changed.crop} is larger than --resize {changed.resize}: the border would be black"
                )
            # Keep what the weights' recipe shows of an image: 224 of 256, or 8 parts in 7.
            changed = replace(changed, resize=round(changed.crop * self.resize / self.crop))
        return changed

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """(3, crop, crop) uint8 of an RGB image; bit for bit what torchvision's transforms see.

        The three colours of a pixel lie side by side in memory, as networks on a CPU want them.

        Raises:
            TooElongated: the resized image would have more than 64 million pixels.
        """
        method = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        with pillow_settings():  # a host's MAX_IMAGE_PIXELS would refuse a large crop
            if self.squash:
                if image.size != (self.crop, self.crop):
                    image = image.resize((self.crop, self.crop), method)
            else:
                size = resized_size(image.size, self.resize)
                if size[0] * size[1] > MAX_RESIZED_PIXELS:
                    raise TooElongated(f"{image.size[0]} x {image.size[1]} would be resized to {size[0]} x {size[1]}")
                if size != image.size:
                    image = image.resize(size, method)
                image = centre_crop(image, self.crop)
        pixels = np.asarray(image)
        return np.array(pixels[:, ::-1] if self.mirror else pixels).transpose(2, 0, 1)


def resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `shorter` pixels, rounded down as torchvision does.

    >>> resized_size((500, 375), 256)
    (341, 256)
    """
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The central side x side pixels; black where the image is smaller, as in torchvision."""
    width, height = image.size
    if width < side or height < side:
        left, top = max(0, (side - width) // 2), max(0, (side - height) // 2)
        padded = Image.new("RGB", (max(width, side), max(height, side)))
        padded.paste(image, (left, top))
        image, (width, height) = padded, padded.size
    left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))
