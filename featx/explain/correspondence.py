"""Whether a network knows an eye for an eye: do features change alike when the same part of each image is hidden?"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from featx.errors import UsageError
from featx.images.preprocess import Preprocess, resized_size
from featx.runtime.text import plural, printable

CONTROL = "random"
COLUMNS = ("path", "part", "left", "top", "width", "height")


@dataclass(frozen=True)
class Box:
    """A rectangle of an image, in its own pixels."""

    left: float
    top: float
    width: float
    height: float


def read_parts(path: Path) -> dict[str, dict[str, Box]]:
    """image -> part -> box, of a CSV file with the columns path, part, left, top, width, height.

    Raises:
        UsageError: it cannot be read, or not every image has every part once.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = [name.strip() for name in reader.fieldnames or ()]
    if not set(COLUMNS) <= set(columns):
        raise UsageError(f"{path} has the columns {', '.join(columns) or 'none'}; it needs {', '.join(COLUMNS)}")
    found: dict[str, dict[str, Box]] = {}
    for row in reader:
        line = f"{path}, line {reader.line_num}"
        try:
            left, top, width, height = (float(row[name] or "") for name in COLUMNS[2:])
        except ValueError:
            raise UsageError(f"{line}: left, top, width and height must be numbers") from None
        if not (width > 0 and height > 0 and np.isfinite([left, top, width, height]).all()):
            raise UsageError(f"{line}: a box of {width:g} x {height:g} pixels hides nothing")
        parts = found.setdefault((row["path"] or "").strip(), {})
        part = (row["part"] or "").strip()
        if part == CONTROL:
            raise UsageError(f"{line}: {CONTROL} is the name of the control, boxes anywhere; call the part otherwise")
        if part in parts:
            raise UsageError(f"{line}: {printable(part)} of this image has a box already")
        parts[part] = Box(left, top, width, height)
    if len(found) < 2:
        raise UsageError(f"{path} has {plural(len(found), 'image')}; two or more are compared")
    names = next(iter(found.values())).keys()
    for image, parts in found.items():
        if parts.keys() != names:
            missing = ", ".join(sorted(names ^ parts.keys()))
            raise UsageError(f"{path}: not every image has {printable(missing)}; see {printable(image)}")
    return found


def seen_of(size: tuple[int, int], preprocess: Preprocess) -> Box:
    """What of an image (width, height) a network is given, in the image's own pixels."""
    width, height = size
    if preprocess.squash:
        return Box(0, 0, width, height)
    resized = resized_size(size, preprocess.resize)
    seen_width, seen_height = (
        min(float(whole), preprocess.crop * whole / new) for whole, new in zip(size, resized, strict=True)
    )
    return Box((width - seen_width) / 2, (height - seen_height) / 2, seen_width, seen_height)


def hidden(image: Image.Image, box: Box, colour: tuple[int, int, int]) -> Image.Image:
    """A copy of an image with a rectangle of one colour."""
    copy = image.copy()
    corners = (round(box.left), round(box.top), round(box.left + box.width) - 1, round(box.top + box.height) - 1)
    if corners[2] >= corners[0] and corners[3] >= corners[1]:
        ImageDraw.Draw(copy).rectangle(corners, fill=colour)
    return copy


def random_box(size: Box, seen: Box, generator: np.random.Generator) -> Box:
    """A box of one's size somewhere in what is seen."""
    width, height = min(size.width, seen.width), min(size.height, seen.height)
    left = seen.left + generator.random() * (seen.width - width)
    top = seen.top + generator.random() * (seen.height - height)
    return Box(left, top, width, height)


def sign_distances(changes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(P,) of every pair of N images: the share of values whose change has another sign.

    The lecture's sum over ordered pairs, divided by the number of values and of pairs, is their mean. A value that
    does not change in either image counts as alike.

    Args:
        changes: (N, ...) features of each image less those with the part hidden.

    Source:
        Zeiler & Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.3 and Table 1.
    """
    signs = np.sign(changes).reshape(len(changes), -1).astype(np.int8)
    found = [
        float((signs[one] != signs[other]).mean())
        for one in range(len(signs))
        for other in range(one + 1, len(signs))
    ]
    return np.array(found)


def mean_colour(preprocess: Preprocess) -> tuple[int, int, int]:
    """The grey that hides, as pixels: the mean of the training images."""
    red, green, blue = (round(255 * value) for value in preprocess.mean)
    return red, green, blue


def parts_of(found: dict[str, dict[str, Box]]) -> list[str]:
    """The names of the parts, in the order of the first image."""
    return list(next(iter(found.values())))
