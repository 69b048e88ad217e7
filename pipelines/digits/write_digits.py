"""Write the 1,797 digits that scikit-learn carries as PNG files, one folder per digit; and its two photographs.

    python write_digits.py FOLDER [PHOTOS]

They are 8 x 8 pixels with 17 grey levels (UCI, "Optical Recognition of Handwritten Digits", 1998), enlarged to
64 x 64 so that a person can look at them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images


def main(folder: Path) -> None:
    digits = load_digits()
    for index, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{index:04d}.png"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.rint(values * (255 / 16)).astype(np.uint8)
        whole = path.with_suffix(".partial")
        Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC).save(whole, "PNG")
        whole.rename(path)


def write_photos(folder: Path) -> None:
    """A temple and a flower."""
    samples = load_sample_images()
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(samples.filenames, samples.images, strict=True):
        path = folder / Path(name).with_suffix(".png").name
        if not path.exists():
            whole = path.with_suffix(".partial")
            Image.fromarray(pixels).save(whole, "PNG")
            whole.rename(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        write_photos(Path(sys.argv[2]))
