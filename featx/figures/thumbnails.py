"""Small square pictures of images, for grids and pages."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from featx.images.bad_image import BadImage
from featx.images.decode import decode
from featx.runtime.threads import usable_cores

MISSING = 200  # the grey of an image that is not there any more


def thumbnail(content: bytes, side: int) -> npt.NDArray[np.uint8]:
    """(side, side, 3) the middle of an image, upright; BadImage if it cannot be decoded."""
    image, _ = decode(content, exif=True)
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BOX if min(image.size) > 4 * side
                                   else Image.Resampling.BICUBIC))  # fmt: skip


def thumbnails(
    rows: Iterable[int],
    content: Callable[[int], bytes],
    side: int,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """(N, side, side, 3) of some rows, and the rows whose images are not there any more: they are grey.

    Args:
        content: row -> the file; BadImage if it is not there.
    """
    wanted = list(rows)
    found = np.full((len(wanted), side, side, 3), MISSING, np.uint8)
    missing: list[int] = []

    def one(place: int) -> None:
        try:
            found[place] = thumbnail(content(wanted[place]), side)
        except BadImage:
            missing.append(wanted[place])
        advance(1)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(one, range(len(wanted))))
    return found, sorted(missing)


def sprite(pictures: npt.NDArray[np.uint8], cells: npt.NDArray[Any] | None = None) -> npt.NDArray[np.uint8]:
    """(rows * side, columns * side, 3): pictures (N, side, side, 3) in a grid, white where there is none.

    Args:
        cells: (N, 2) row and column of each; by default row by row.
    """
    side = pictures.shape[1]
    columns = math.ceil(math.sqrt(len(pictures)))
    if cells is None:
        cells = np.stack(np.divmod(np.arange(len(pictures)), columns), 1)
    rows, columns = (int(most) + 1 for most in cells.max(axis=0))
    found = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for picture, (row, column) in zip(pictures, cells.tolist(), strict=True):
        found[row * side : (row + 1) * side, column * side : (column + 1) * side] = picture
    return found


def jpeg(picture: npt.NDArray[np.uint8], quality: int = 75) -> bytes:
    """A picture (H, W, 3) as a JPEG file."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)
    return out.getvalue()
