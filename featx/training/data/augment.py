"""Random changes of training images, in batches on the device, each image with its own.

torchvision's v2 transforms change all images of a batch alike; here crop, mirror, shift and elastic distortion of a
whole batch are one resampling, with a box and a field per image. What each of them does to an image is what
torchvision's functions do with the same parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featx.errors import UsageError
from featx.runtime.device import upload
from featx.training.data.mixing import Mixes, draw_mixes

# Rec. 601 luma, as torchvision's rgb_to_grayscale.
_LUMA = (0.2989, 0.587, 0.114)
_ALPHAS = {"mixup": "0.2", "cutmix": "1"}  # the papers', for ImageNet
_TRIES = 10  # for a crop that lies inside the image; then the whole image is taken
_WORDS = (
    "flip, crop[:SMALLEST], shift:PIXELS, jitter:STRENGTH, elastic:PIXELS, mixup[:ALPHA], cutmix[:ALPHA], "
    "none or auto"
)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    Attributes:
        flip: mirrored left to right, every second image.
        crop: smallest area of a random crop, as a share of the image's, with 3/4 to 4/3 of its aspect; 0: no crop.
        shift: up to so many pixels to each side, what comes in from outside is the image's own mirror image.
        jitter: brightness, contrast and saturation change by up to this share.
        elastic: standard deviation in pixels of a smooth random distortion.
        mixup, cutmix: every second image has another one mixed in, with shares from Beta(alpha, alpha); 0: none has.

    Source:
        crop: Szegedy et al., CVPR 2015; elastic: Simard, Steinkraus & Platt, ICDAR 2003.
    """

    flip: bool = False
    crop: float = 0.0
    shift: int = 0
    jitter: float = 0.0
    elastic: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def is_none(self) -> bool:
        return self == Augmentation()

    @property
    def only_mirrors(self) -> bool:
        return self == Augmentation(flip=True)


def parse_augmentation(text: str) -> Augmentation:
    """What `--augment` means.

    >>> parse_augmentation("flip,shift:6")
    Augmentation(flip=True, crop=0.0, shift=6, jitter=0.0, elastic=0.0, mixup=0.0, cutmix=0.0)
    """
    found: dict[str, float | bool] = {}
    for word in (part.strip() for part in text.split(",")):
        name, _, value = word.partition(":")
        try:
            if name == "none" and text.strip() == "none":
                continue
            if name == "flip" and not value:
                found["flip"] = True
            elif name == "crop":
                found["crop"] = _between(value or "0.3", 0.01, 1.0)
            elif name == "shift":
                found["shift"] = int(_between(value, 1, 512))
            elif name == "jitter":
                found["jitter"] = _between(value, 0.0, 1.0)
            elif name == "elastic":
                found["elastic"] = _between(value, 0.0, 100.0)
            elif name in ("mixup", "cutmix"):
                found[name] = _between(value or _ALPHAS[name], 0.01, 100.0)
            else:
                raise ValueError
        except ValueError:
            raise UsageError(f"--augment: {word!r} is none of {_WORDS}") from None
    return Augmentation(**found)  # type: ignore[arg-type]  # each value was parsed to the type of its field


def _between(value: str, low: float, high: float) -> float:
    number = float(value)
    if not low <= number <= high:
        raise ValueError
    return number


@dataclass(frozen=True)
class Draws:
    """The random choices for B images.

    Attributes:
        mirrored: (B,) bool.
        boxes: (B, 4) left, top, width, height of what is cut out, in pixels of the source.
        factors: (B, 3) of brightness, contrast and saturation.
        fields: (B, 2, S, S) displacement in output pixels, horizontal first; None without distortion.
        mixes: None if no images are mixed.
    """

    mirrored: Tensor
    boxes: Tensor
    factors: Tensor
    fields: Tensor | None
    mixes: Mixes | None = None

    def part(self, rows: slice) -> Draws:
        """For some images in a row, without what is mixed into them."""
        return self.of(torch.arange(len(self.mirrored))[rows])

    def mixes_of(self, rows: slice) -> Mixes:
        """What is mixed into some images."""
        assert self.mixes is not None
        return self.mixes.part(rows)

    def of(self, places: Tensor) -> Draws:
        """For the images at some places, without what is mixed into them."""
        fields = None if self.fields is None else self.fields[places]
        return Draws(self.mirrored[places], self.boxes[places], self.factors[places], fields)


def draw(how: Augmentation, count: int, source: int, side: int, generator: torch.Generator) -> Draws:
    """Choose for `count` images of source x source pixels that become side x side; always on the CPU."""
    mirrored = torch.rand(count, generator=generator) < (0.5 if how.flip else 0.0)
    if how.crop:
        boxes = _crops(how.crop, count, source, generator)
    else:
        boxes = torch.tensor([(source - side) // 2, (source - side) // 2, side, side]).repeat(count, 1).float()
    if how.shift:
        boxes[:, :2] += torch.randint(-how.shift, how.shift + 1, (count, 2), generator=generator)
    factors = 1 + how.jitter * (2 * torch.rand(count, 3, generator=generator) - 1)
    fields = None
    if how.elastic:
        rough = 2 * torch.rand(count, 2, side, side, generator=generator) - 1
        fields = _smooth(rough, side / 7)
        fields *= how.elastic / fields.std(dim=(1, 2, 3), keepdim=True)
    mixes = None
    if how.mixup or how.cutmix:
        mixes = draw_mixes(how.mixup, how.cutmix, count, side, generator)
    return Draws(mirrored, boxes, factors, fields, mixes)


def _crops(smallest: float, count: int, source: int, generator: torch.Generator) -> Tensor:
    """As torchvision's RandomResizedCrop chooses: the first of ten tries that lies inside, else all of it."""
    area = source**2 * (smallest + (1 - smallest) * torch.rand(count, _TRIES, generator=generator))
    aspect = torch.exp(math.log(3 / 4) + math.log(16 / 9) * torch.rand(count, _TRIES, generator=generator))
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    inside = (width <= source) & (height <= source)
    first = inside.float().argmax(1)
    place = torch.rand(count, 2, generator=generator)
    rows = torch.arange(count)
    width, height = width[rows, first], height[rows, first]
    boxes = torch.stack(
        [
            (place[:, 0] * (source - width + 1)).floor(),
            (place[:, 1] * (source - height + 1)).floor(),
            width,
            height,
        ],
        1,
    )
    boxes[~inside.any(1)] = torch.tensor([0.0, 0.0, source, source])
    return boxes


def _smooth(fields: Tensor, sigma: float) -> Tensor:
    """Blur each (S, S) field with a Gaussian, mirrored at the border."""
    radius = min(math.ceil(3 * sigma), fields.shape[-1] - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=fields.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    count, _, side, _ = fields.shape
    flat = fields.view(count * 2, 1, side, side)
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), "reflect"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), "reflect"), kernel.view(1, 1, -1, 1))
    return flat.view(count, 2, side, side)


def augment(pixels: Tensor, how: Augmentation, draws: Draws, side: int) -> Tensor:
    """Change images (B, 3, S, S) of 0..255 into (B, 3, side, side) of 0..1, float32, on their device."""
    device = pixels.device
    images = pixels.float().div_(255)
    if how.crop or how.shift or how.elastic:
        images = _resample(images, draws, side)
    else:
        start = (pixels.shape[2] - side) // 2
        images = images[:, :, start : start + side, start : start + side]
        if how.flip:
            images = torch.where(upload(draws.mirrored, device)[:, None, None, None], images.flip(3), images)
    return _recolour(images, upload(draws.factors, device)) if how.jitter else images


def _resample(images: Tensor, draws: Draws, side: int) -> Tensor:
    """Cut out each image's box, mirrored and distorted, at side x side pixels, bilinear."""
    device, source = images.device, images.shape[2]
    left, top, width, height = upload(draws.boxes, device).T[:, :, None, None]
    pixels = torch.arange(side, device=device, dtype=torch.float32) + 0.5
    columns = torch.where(upload(draws.mirrored, device)[:, None, None], side - pixels, pixels)
    rows = pixels[None, :, None]
    if draws.fields is not None:
        fields = upload(draws.fields, device)
        columns, rows = columns + fields[:, 0], rows + fields[:, 1]
    across = (left + columns * width / side) * (2 / source) - 1
    down = (top + rows * height / side) * (2 / source) - 1
    grid = torch.stack([across.expand(-1, side, side), down.expand(-1, side, side)], 3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolour(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation, in this order, each clipped to 0..1 as torchvision's functions do."""
    brightness, contrast, saturation = factors.T[:, :, None, None, None]
    weights = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    images = (images * brightness).clamp(0, 1)
    mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = (contrast * images + (1 - contrast) * mean).clamp(0, 1)
    grey = (images * weights).sum(1, keepdim=True)
    found: Tensor = (saturation * images + (1 - saturation) * grey).clamp(0, 1)
    return found
