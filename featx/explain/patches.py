"""What units see of images: the patch of their receptive field, and what in it excites them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.explain.sources import Pictures
from featx.explain.subject import Subject
from featx.explain.units import project
from featx.networks.layer_names import Layer

GREY = 128  # of a patch beyond the border of the image


def patches_of(
    subject: Subject,
    layer: Layer,
    pictures: Pictures,
    units: npt.NDArray[np.intp],
    rows: npt.NDArray[np.intp],
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, npt.NDArray[Any]]:
    """What U units see of the k images that excite each most.

    Args:
        rows: (U, k) of the images; negative where there is none.
        advance: is told of images as they are done.

    Returns:
        `positions` (U, k, 2), `boxes` (U, k, 4), `patches` (U, k, h, w, 3) uint8, `projections` (U, k, h, w, 3) from
        -1 to 1, to be multiplied by `scales` (U, k).
    """
    positions = np.zeros((*rows.shape, 2), np.intp)
    boxes = np.zeros((*rows.shape, 4), np.intp)
    scales = np.zeros(rows.shape, np.float32)
    height, width = boxes_of(subject, layer, np.zeros((1, 2), np.intp))[0, 2:]
    patches = np.full((*rows.shape, height, width, 3), 255, np.uint8)
    signals = np.zeros((*rows.shape, height, width, 3), np.float16)
    for place, unit in enumerate(units):  # unit by unit, so that memory stays small
        ranks = np.flatnonzero(rows[place] >= 0)
        if not len(ranks):
            continue
        pixels = pictures.pixels([int(row) for row in rows[place, ranks]])
        seen = project(subject, layer, subject.normalised(pixels), np.repeat(unit, len(ranks)))
        positions[place, ranks] = seen.positions
        boxes[place, ranks] = boxes_of(subject, layer, seen.positions)
        for rank, image, signal in zip(ranks, pixels, seen.projections.transpose(0, 2, 3, 1), strict=True):
            box = boxes[place, rank]
            patches[place, rank] = cut(image, box, GREY)
            own = cut(signal, box, 0)
            scales[place, rank] = np.abs(own).max()
            signals[place, rank] = own / (scales[place, rank] or 1)
        advance(len(ranks))
    return {
        "positions": positions, "boxes": boxes, "patches": patches, "projections": signals, "scales": scales,
    }  # fmt: skip


def boxes_of(subject: Subject, layer: Layer, positions: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """(B, 4) top, left, height, width in pixels: what the unit at each position sees.

    It can begin before the image, or end behind it; it is the image itself where a unit sees the whole of it, or
    where that is not known (attention).
    """
    field = subject.recipe.backbone.geometry_of(layer).field
    side = subject.side
    found = np.tile(np.array([0, 0, side, side], np.intp), (len(positions), 1))
    if field is None or field.whole or (field.vertical.size >= side and field.horizontal.size >= side):
        return found
    for axis, span in enumerate((field.vertical, field.horizontal)):
        found[:, axis] = span.start + positions[:, axis] * span.stride
        found[:, 2 + axis] = span.size
    return found


def cut(image: npt.NDArray[Any], box: npt.NDArray[np.intp], fill: float) -> npt.NDArray[Any]:
    """(h, w, ...) of an image (H, W, ...), filled where the box goes beyond it.

    >>> cut(np.arange(9).reshape(3, 3), np.array([-1, 1, 3, 3]), 0)
    array([[0, 0, 0],
           [1, 2, 0],
           [4, 5, 0]])
    """
    top, left, height, width = (int(value) for value in box)
    found = np.full((height, width, *image.shape[2:]), fill, image.dtype)
    rows = slice(max(0, top), min(image.shape[0], top + height))
    columns = slice(max(0, left), min(image.shape[1], left + width))
    if rows.start < rows.stop and columns.start < columns.stop:
        found[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    return found
