"""What can be wrong with a photograph itself: dark, blurred, of an odd size."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from featx.images.bad_image import BadImage
from featx.images.decode import decode
from featx.runtime.threads import usable_cores

DARK = 64  # of 255: 99 % of the pixels of a dark image are below it
ODD_SHAPE = 3.0  # longer side over shorter side
ODD_SIZE = 3.0  # times larger or smaller than the median
FENCE = 1.5  # interquartile ranges beyond the quartiles
_SIDE = 128  # pixels of the shorter side that is looked at


@dataclass(frozen=True)
class Photos:
    """Of n images, NaN or 0 where one cannot be read any more.

    Attributes:
        sizes: (n, 2) width and height in pixels.
        brightness: (n,) the 99th percentile of the grey values, 0 to 255.
        sharpness: (n,) log of the standard deviation of the Laplacian, the shorter side brought to 128 pixels.
    """

    sizes: npt.NDArray[np.int32]
    brightness: npt.NDArray[np.float32]
    sharpness: npt.NDArray[np.float32]


def look_at(
    rows: Sequence[int], content: Callable[[int], bytes], advance: Callable[[int], None] = lambda done: None
) -> Photos:
    """Measure images.

    Args:
        content: row -> the file; BadImage if it is not there.
    """
    count = len(rows)
    found = Photos(
        np.zeros((count, 2), np.int32), np.full(count, np.nan, np.float32), np.full(count, np.nan, np.float32)
    )

    def one(place: int) -> None:
        try:
            size, grey = _grey(content(rows[place]))
        except BadImage:
            return
        finally:
            advance(1)
        found.sizes[place] = size
        found.brightness[place] = np.percentile(grey, 99)
        found.sharpness[place] = np.log(max(float(_laplacian(grey).std()), 1e-3))

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(one, range(count)))
    return found


def _grey(content: bytes) -> tuple[tuple[int, int], npt.NDArray[np.float32]]:
    """Width and height of an image, and its grey values, small."""
    image: Image.Image
    try:
        image = Image.open(io.BytesIO(content))
        size = image.size
        if image.format == "JPEG":
            image.draft("L", (2 * _SIDE, 2 * _SIDE))  # decoded at a fraction of the size
            image = image.convert("L")
        else:
            image = decode(content, exif=False)[0].convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        image = decode(content, exif=False)[0].convert("L")
        size = image.size
    scale = _SIDE / min(image.size)
    if scale < 1:
        image = image.resize(
            (max(1, round(scale * image.width)), max(1, round(scale * image.height))), Image.Resampling.BOX
        )
    return size, np.asarray(image, np.float32)


def _laplacian(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if min(grey.shape) < 3:
        return np.zeros((1, 1), np.float32)
    found: npt.NDArray[np.float32] = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    )
    return found


def fence(values: npt.NDArray[np.floating], *, upper: bool) -> float:
    """Tukey's fence: 1.5 interquartile ranges above the upper quartile, or below the lower one; NaN left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return np.inf if upper else -np.inf
    low, high = np.percentile(known, [25, 75])
    return float(high + FENCE * (high - low) if upper else low - FENCE * (high - low))


def faults(photos: Photos) -> dict[str, list[tuple[int, float, str]]]:
    """What is wrong -> (position, number that says how wrong, words) of the images, the worst first."""
    width, height = photos.sizes.T.astype(np.float64)
    there = (width > 0) & np.isfinite(photos.brightness)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.maximum(width, height) / np.minimum(width, height)
        side = np.sqrt(width * height)
        times = side / np.median(side[there]) if there.any() else side
        times = np.maximum(times, 1 / times)
    least = fence(photos.sharpness, upper=False)
    dark = there & (photos.brightness < DARK)
    blurred = there & ~dark & (photos.sharpness < least)
    odd = there & ((shape > ODD_SHAPE) | (times > ODD_SIZE))

    typical = np.exp(np.nanmedian(photos.sharpness)) if there.any() else np.nan
    words = {
        "dark": lambda place: f"99 % of its pixels are below {photos.brightness[place]:.0f} of 255",
        "blurred": lambda place: f"Laplacian {np.exp(photos.sharpness[place]):.1f}, of the others {typical:.1f}",
        "odd-size": lambda place: f"{width[place]:.0f} x {height[place]:.0f} pixels",
    }
    found: dict[str, list[tuple[int, float, str]]] = {}
    for kind, which, worst_first in (
        ("dark", dark, photos.brightness),
        ("blurred", blurred, np.exp(photos.sharpness)),
        ("odd-size", odd, -np.maximum(shape, times)),
    ):
        order = sorted(np.flatnonzero(which).tolist(), key=lambda place: float(worst_first[place]))  # used here
        found[kind] = [(place, float(worst_first[place]), words[kind](place)) for place in order]
    return found
