"""Frames of a video by PyAV, and optical flow between them by OpenCV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from featx.errors import SourceError
from featx.images.bad_image import MAX_PIXELS, BadImage
from featx.images.processes.turns import Need
from featx.status import Status

STACK = 10  # fields of flow, two channels each
TILES = 3  # a stack is a square of 3 x 3 tiles of three channels each
CHANNELS = 2 * STACK
LARGEST_FLOW = 20.0  # pixels per frame; more counts as that much
_MOST_FRAMES = 1_000_000


def places(frames: int, count: int) -> list[int]:
    """`count` evenly spaced ones of so many frames: the middles of equal parts.

    >>> places(100, 4), places(3, 5)
    ([12, 37, 62, 87], [0, 0, 1, 2, 2])
    """
    return [int((number + 0.5) * frames / count) for number in range(count)]


def frames(file: Path, count: int, need: Need) -> list[bytes]:
    """N evenly spaced frames, as PPM files.

    Raises:
        BadImage: the file is missing, no video, or holds no frames.
    """
    wanted = places(_length(file), count)
    found = _picked(file, set(wanted), "rgb24", need)
    files = {place: _pnm(pixels) for place, pixels in found.items()}
    return [files[place] for place in wanted]  # of a short clip several are the same


def flow_stacks(file: Path, count: int, side: int, need: Need) -> list[bytes]:
    """N evenly spaced stacks of the flow over ten frames, as PPM files of 3 side x 3 side pixels.

    Of every frame the central square is resized to side x side. Channel 2 k of a stack is the horizontal, 2 k + 1 the
    vertical displacement from its frame k to k + 1, in pixels from -20 to 20 as levels from 1 to 255, 128 for none.
    The channels lie three in a tile, row by row; what is left over is 128.

    Source:
        Simonyan & Zisserman, Two-Stream Convolutional Networks for Action Recognition in Videos, NIPS 2014. The flow
        is OpenCV's DIS (Kroeger et al., ECCV 2016) in the place of Brox et al.'s, and its mean is not subtracted.

    Raises:
        BadImage: as for `frames`, or the clip has fewer than eleven frames.
    """
    length = _length(file)
    if length <= STACK:
        raise BadImage(Status.DAMAGED, f"the clip has {length} frames; a stack of flow needs {STACK + 1}")
    starts = places(length - STACK, count)
    wanted = {start + step for start in starts for step in range(STACK + 1)}
    pictures = {place: _square(frame, side) for place, frame in _picked(file, wanted, "gray", need).items()}
    flow = _flow()
    fields = {
        place: flow.calc(picture, pictures[place + 1], None)
        for place, picture in pictures.items()
        if place + 1 in pictures
    }
    return [_pnm(_mosaic([fields[start + step] for step in range(STACK)])) for start in starts]


def _mosaic(stack: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.uint8]:
    """(3 side, 3 side, 3) of fields (side, side, 2)."""
    channels = np.concatenate([np.moveaxis(field, 2, 0) for field in stack])
    side = channels.shape[1]
    levels = np.full((3 * TILES**2, side, side), 128, np.uint8)
    scaled = np.clip(channels / LARGEST_FLOW, -1, 1) * 127 + 128
    levels[: len(channels)] = np.rint(scaled).astype(np.uint8)
    tiles = levels.reshape(TILES, TILES, 3, side, side).transpose(0, 3, 1, 4, 2)
    return tiles.reshape(TILES * side, TILES * side, 3)


def _flow() -> Any:
    try:
        import cv2
    except ImportError:
        raise SourceError("optical flow needs OpenCV: pip install 'featx[video]'") from None
    cv2.setNumThreads(1)
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def _square(frame: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """The central square of a grey frame (H, W), resized."""
    shorter = min(frame.shape)
    top, left = (frame.shape[0] - shorter) // 2, (frame.shape[1] - shorter) // 2
    image = Image.fromarray(np.ascontiguousarray(frame[top : top + shorter, left : left + shorter]))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def _length(file: Path) -> int:
    """The number of frames, by decoding: what a file says of it need not be so."""
    length = sum(1 for _ in _decoded(file))
    if not length:
        raise BadImage(Status.EMPTY, "the video has no frames")
    return length


def _picked(file: Path, wanted: set[int], form: str, need: Need) -> dict[int, npt.NDArray[np.uint8]]:
    found: dict[int, npt.NDArray[np.uint8]] = {}
    for place, frame in enumerate(_decoded(file)):
        if place in wanted:
            if not found:
                need(3 * len(wanted) * frame.width * frame.height)
            # As a player shows it: a phone writes which way it was held.
            found[place] = np.rot90(frame.to_ndarray(format=form), round(frame.rotation / 90))
    return found


def _decoded(file: Path) -> Iterator[Any]:
    """The frames of the first video stream.

    Raises:
        BadImage: the file is missing, no video, damaged, or has absurdly many or large frames.
    """
    try:
        import av
    except ImportError:
        raise SourceError("videos need PyAV: pip install 'featx[video]'") from None
    if not file.is_file():
        raise BadImage(Status.MISSING, "no such file")
    if not file.stat().st_size:
        raise BadImage(Status.EMPTY, "the file has no bytes")
    try:
        # Opened here: FFmpeg would take a name with a colon for an address.
        with file.open("rb") as content, av.open(content, "r") as container:
            if not container.streams.video:
                raise BadImage(Status.NOT_AN_IMAGE, "the file holds no video")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(stream)):
                if number >= _MOST_FRAMES or frame.width * frame.height > MAX_PIXELS:
                    raise BadImage(Status.TOO_LARGE, f"frame {number:,} of {frame.width} x {frame.height} pixels")
                yield frame
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BadImage(Status.DAMAGED, f"the video cannot be decoded: {reason}") from None
    except OSError as error:
        raise BadImage(Status.UNREADABLE, error.strerror or str(error)) from None


def _pnm(pixels: npt.NDArray[np.uint8]) -> bytes:
    return b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + np.ascontiguousarray(pixels).tobytes()
