"""Clips of textures that move, and CLIPS.csv of them. A frame shows the texture, and only motion the direction."""

import csv
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

FRAMES, SIDE, STEP = 16, 64, 4
DIRECTIONS = {"left": (-STEP, 0), "right": (STEP, 0), "up": (0, -STEP), "down": (0, STEP), "still": (0, 0)}


def texture(number: int) -> np.ndarray:
    """(2 SIDE, 2 SIDE, 3) blobs that repeat, in the colours and of the size of their number."""
    generator = np.random.default_rng(number)
    cells = 8 + 4 * (number % 3)
    coarse = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8))
    return np.asarray(np.tile(np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)), (2, 2, 1)))


def write(path: Path, pixels: np.ndarray, start: tuple[int, int], step: tuple[int, int]) -> None:
    """A window that moves over a texture, against the direction in which the texture is to move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for number in range(FRAMES):
            left, top = ((start[axis] - number * step[axis]) % SIDE for axis in (0, 1))
            window = np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())


def main(table: str, textures: int, clips: int) -> None:
    folder, rows = Path(f"{table}.clips"), []
    for number in range(textures):
        generator = np.random.default_rng(1000 + number)
        for direction, step in DIRECTIONS.items():
            for clip in range(clips):
                start = tuple(int(place) for place in generator.integers(0, SIDE, 2))
                path = folder / f"{number}-{direction}" / f"{clip:02d}.mp4"
                write(path, texture(number), start, step)
                split = "test" if clip >= 0.7 * clips else "train"
                rows.append([path.relative_to(folder.parent), f"{number}-{direction}", split])
    partial = Path(f"{table}.partial")
    with partial.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    partial.rename(table)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
