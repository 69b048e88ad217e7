"""From an RGB image to the pixels a network was trained on, exactly as torchvision does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from featx.errors import UsageError
from featx.images.decode import pillow_settings
from featx.options.common import AGGREGATES, FITS, INTERPOLATIONS, VIEWS
from featx.options.parsing import parse_colours

MAX_RESIZED_PIXELS = 1 << 26  # 64 Mpx: a 1 x 10,000 image resized to 256 pixels' width would be far beyond


class TooElongated(ValueError):
    """Resizing the shorter side would make the longer one absurd."""


CENTER, CORNERS, TEN = "center", "corners", "ten"
BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop, scale and normalise.

    Attributes:
        resize: shorter side after the resize, in pixels; ignored with `squash` and `pad`.
        crop: side S of the square that is cut out; smaller images get a black border.
        squash: resize to crop x crop without keeping the aspect.
        interpolation: of the resize, one of `INTERPOLATIONS`, all but "nearest" with antialias.
        mirror: flip the image horizontally, at the end.
        mean, std: of the three colours, after scaling to 0..1.
        pad: colour (0 to 255) of the border of an image that is resized as a whole, its longer side to `crop`, and
            put into the middle; None: no such border.
        grey: turn colours into their Rec. 601 luma, three times.
        views: which squares the network sees of an image: "center"; "corners", four and the centre; "ten", those
            and the same five of the mirrored image, in the order of torchvision's TenCrop.
        aggregate: what becomes of the values of several views: their "mean", their "max", or a "stack" of them.

    Source:
        views: Krizhevsky, Sutskever & Hinton, NIPS 2012, section 4.1: the mean over ten patches.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False
    mirror: bool = False
    pad: tuple[int, int, int] | None = None
    grey: bool = False
    views: str = CENTER
    aggregate: str = "mean"

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Preprocess:
        """From plain values, as stored in a file's provenance."""
        made = cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        if made.pad is None:
            return made
        red, green, blue = made.pad
        return replace(made, pad=(red, green, blue))

    def values(self) -> dict[str, Any]:
        """As plain values for JSON; what older versions did not know is left out where it is not used."""
        newer = {"pad": None, "grey": False, "views": CENTER, "aggregate": "mean"}
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {name: value for name, value in values.items() if name not in newer or value != newer[name]}

    @property
    def view_count(self) -> int:
        """V, the squares that the network sees of an image."""
        return VIEWS[self.views]

    @property
    def shape(self) -> tuple[int, int]:
        """(V * S, S): height and width of an image's pixels, its views one below the other."""
        return self.view_count * self.crop, self.crop

    @property
    def is_plain(self) -> bool:
        """Whether a decoder on a device can do it: resize and centre crop, or squash, in colour."""
        whole = self.pad is None and not self.grey and self.views == CENTER
        return whole and self.interpolation in ("bilinear", "bicubic")

    def overridden(
        self,
        *,
        resize: int | None = None,
        crop: int | None = None,
        squash: bool = False,
        fit: str | None = None,
        pad_color: str | None = None,
        interpolation: str | None = None,
        mean: str | Sequence[float] | None = None,
        std: str | Sequence[float] | None = None,
        grey: bool = False,
        mirror: bool = False,
        views: str = CENTER,
        aggregate: str = "mean",
    ) -> Preprocess:
        """With what the user asks for in place of the weights' own.

        Args:
            resize, crop, interpolation: None for the weights' own.
            squash: as `fit="squash"`.
            fit: "crop", "pad" or "squash"; None for the weights' own, which is "crop" of all published ones.
            pad_color: "R,G,B" from 0 to 255, or "mean"; None for black.
            mean, std: three numbers, or one for all colours, of colours from 0 to 1; None for the weights' own.

        Raises:
            UsageError: values out of their range, or that do not go together.
        """
        fit = "squash" if squash and fit is None else fit or self.fit
        interpolation = interpolation or self.interpolation
        for what, value, allowed in (
            ("fit", fit, FITS), ("interpolation", interpolation, INTERPOLATIONS), ("views", views, (*VIEWS,)),
            ("aggregate", aggregate, AGGREGATES),
        ):  # fmt: skip
            if value not in allowed:
                raise UsageError(f"--{what} is {value!r}; choose from {', '.join(allowed)}")
        if resize is not None and fit != "crop":
            raise UsageError(f"--fit {fit} resizes the whole image to the crop size; leave out --resize")
        if views != CENTER and fit != "crop":
            raise UsageError(f"--views {views} cuts squares out of an image, and --fit {fit} leaves none to cut")
        changed = replace(
            self,
            resize=resize or self.resize,
            crop=crop or self.crop,
            squash=fit == "squash",
            interpolation=interpolation,
            mean=self.mean if mean is None else parse_colours(mean, "--mean", 0.0, 1.0),
            std=self.std if std is None else parse_colours(std, "--std", 1e-6, 1.0),
            grey=grey or self.grey,
            mirror=mirror,
            views=views,
            aggregate=aggregate,
        )
        if fit == "pad":
            changed = replace(changed, pad=_border(pad_color, changed.mean) if pad_color else self.pad or BLACK)
        elif pad_color is not None:
            raise UsageError(f"--pad-color is the colour of a border, and --fit {fit} makes none; add --fit pad")
        else:
            changed = replace(changed, pad=None)
        if fit == "crop" and changed.crop > changed.resize:
            if resize is not None:
                raise UsageError(
                    f"--crop {changed.crop} is larger than --resize {changed.resize}: the border would be black"
                )
            # Keep what the weights' recipe shows of an image: 224 of 256, or 8 parts in 7.
            changed = replace(changed, resize=round(changed.crop * self.resize / self.crop))
        return changed

    @property
    def fit(self) -> str:
        """How an image becomes a square: "crop", "pad" or "squash"."""
        return "pad" if self.pad is not None else "squash" if self.squash else "crop"

    def describe(self) -> str:
        """In words, for people.

        >>> Preprocess(256, 224, "bilinear", (0, 0, 0), (1, 1, 1)).describe()
        'shorter side 256, centre 224 x 224, bilinear'
        """
        square = f"{self.crop} x {self.crop}"
        cut = {CENTER: f"centre {square}", CORNERS: f"four corners and the centre {square}"}
        text = f"shorter side {self.resize}, {cut.get(self.views, f'ten views {square}')}"
        if self.pad is not None:
            text = f"longer side {self.crop}, on {square} of colour {','.join(map(str, self.pad))}"
        elif self.squash:
            text = f"squashed to {square}"
        kept = f", {self.aggregate} of the views" if self.views != CENTER else ""
        return (
            f"{text}, {self.interpolation}{', grey' if self.grey else ''}{', mirrored' if self.mirror else ''}{kept}"
        )

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """(3, V * S, S) uint8 of an RGB image, its views one below the other; bit for bit what torchvision gives.

        The three colours of a pixel lie side by side in memory, as networks on a CPU want them.

        Raises:
            TooElongated: the resized image would have more than 64 million pixels.
        """
        with pillow_settings():  # a host's MAX_IMAGE_PIXELS would refuse a large crop
            image = self._resized(image)
            views = [image]
            if self.fit == "crop":
                corners = [*corner_crops(image, self.crop)] if self.views != CENTER else []
                views = [*corners, centre_crop(image, self.crop)]
                if self.views == TEN:
                    turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                    views += [*corner_crops(turned, self.crop), centre_crop(turned, self.crop)]
            if self.grey:
                views = [view.convert("L").convert("RGB") for view in views]
        arrays = [np.asarray(view)[:, ::-1] if self.mirror else np.asarray(view) for view in views]
        return np.concatenate(arrays).transpose(2, 0, 1)

    def _resized(self, image: Image.Image) -> Image.Image:
        method, side = Image.Resampling[self.interpolation.upper()], self.crop
        if self.pad is not None:
            longer = max(image.size)
            size = max(1, round(side * image.width / longer)), max(1, round(side * image.height / longer))
            whole = Image.new("RGB", (side, side), self.pad)
            whole.paste(image.resize(size, method), (round((side - size[0]) / 2), round((side - size[1]) / 2)))
            return whole
        size = (side, side) if self.squash else resized_size(image.size, self.resize)
        if not self.squash and size[0] * size[1] > MAX_RESIZED_PIXELS:
            raise TooElongated(f"{image.size[0]} x {image.size[1]} would be resized to {size[0]} x {size[1]}")
        return image if size == image.size else image.resize(size, method)


def _border(given: str, mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The colour of a border in levels of 0 to 255."""
    if given == "mean":
        red, green, blue = (round(255 * value) for value in mean)
    else:
        red, green, blue = (round(value) for value in parse_colours(given, "--pad-color", 0, 255))
    return red, green, blue


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
    if image.width < side or image.height < side:
        image = _padded(image, side)
    width, height = image.size
    left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))


def corner_crops(image: Image.Image, side: int) -> Iterator[Image.Image]:
    """Its four corners, side x side pixels each: top left, top right, bottom left, bottom right.

    Black where the image is smaller, as at the centre.
    """
    if image.width < side or image.height < side:
        image = _padded(image, side)
    width, height = image.size
    for top in (0, height - side):
        for left in (0, width - side):
            yield image.crop((left, top, left + side, top + side))


def _padded(image: Image.Image, side: int) -> Image.Image:
    """With a black border that makes it at least side x side, as torchvision's centre crop makes it."""
    left, top = max(0, (side - image.width) // 2), max(0, (side - image.height) // 2)
    padded = Image.new("RGB", (max(image.width, side), max(image.height, side)))
    padded.paste(image, (left, top))
    return padded
