"""Ways from a JPEG to the 224 x 224 pixels AlexNet sees: milliseconds of one thread, and how exact each is.

    taskset -c 0 python benchmarks/decode.py PHOTOS [--images 120]

The reference is Pillow: decode, Resize(256), CenterCrop(224), which is what torchvision's transforms do and what
featx does. simplejpeg takes part where it is installed. The distance is that of the pixels, and of AlexNet's fc7 with
random weights (largest difference over the layer's largest value).
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from environment import machine
from PIL import Image
from torch.nn import functional

from featx.extraction.engine import Engine
from featx.extraction.recipe import Recipe
from featx.images.decode import decode
from featx.images.preprocess import resized_size
from featx.runtime.text import table

Pixels = npt.NDArray[np.uint8]
BILINEAR = Image.Resampling.BILINEAR
SIDE, SHORTER = 224, 256


def cut(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    top, left = round((height - SIDE) / 2.0), round((width - SIDE) / 2.0)
    return pixels[top : top + SIDE, left : left + SIDE]


def torch_resize(pixels: Pixels) -> Pixels:
    width, height = resized_size((pixels.shape[1], pixels.shape[0]), SHORTER)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = functional.interpolate(image, size=(height, width), mode="bilinear", antialias=True)
    return cut(resized[0].permute(1, 2, 0).numpy())


def pillow_box(image: Image.Image) -> Pixels:
    """Only what the crop keeps is resized; Pillow rounds the box, and so the result, a little differently."""
    (width, height), (new_width, new_height) = image.size, resized_size(image.size, SHORTER)
    left, top = round((new_width - SIDE) / 2.0), round((new_height - SIDE) / 2.0)
    x, y = width / new_width, height / new_height
    return np.array(
        image.resize((SIDE, SIDE), BILINEAR, box=(left * x, top * y, (left + SIDE) * x, (top + SIDE) * y))
    )


def draft(content: bytes) -> Pixels:
    """libjpeg's scaled decoding, as Image.draft asks for it."""
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (SHORTER, SHORTER))
    image = image.convert("RGB")
    return cut(np.array(image.resize(resized_size(image.size, SHORTER), BILINEAR)))


def ways() -> dict[str, Callable[[bytes], Pixels]]:
    recipe = Recipe.plan(backbone="alexnet", layers="fc7", weights="random:0", pool="none", device="cpu")
    found: dict[str, Callable[[bytes], Pixels]] = {
        "featx (Pillow)": lambda content: recipe.preprocess.pixels(decode(content)[0]).transpose(1, 2, 0),
        "Pillow, resize only the crop": lambda content: pillow_box(decode(content)[0]),
        "Pillow draft": draft,
        "Pillow decode, torch resize": lambda content: torch_resize(np.array(decode(content)[0])),
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        def pillow_resize(content: bytes) -> Pixels:
            image = Image.fromarray(simplejpeg.decode_jpeg(content, "RGB"))
            return cut(np.array(image.resize(resized_size(image.size, SHORTER), BILINEAR)))

        found["simplejpeg, Pillow resize"] = pillow_resize
        found["simplejpeg, torch resize"] = lambda content: torch_resize(simplejpeg.decode_jpeg(content, "RGB"))
    from torchcodec.decoders import decode_jpeg

    def by_torchcodec(content: bytes) -> Pixels:
        data = torch.from_numpy(np.frombuffer(bytearray(content), np.uint8))
        return torch_resize(decode_jpeg(data).permute(1, 2, 0).numpy())

    found["torchcodec decode, torch resize"] = by_torchcodec
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = sorted(p for p in options.photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[: options.images]
    contents = [path.read_bytes() for path in photos]
    recipe = Recipe.plan(backbone="alexnet", layers="fc7", weights="random:0", pool="none", device="cpu")
    extractor = Engine(recipe)

    def features(pixels: Pixels) -> npt.NDArray[np.float32]:
        blocks = []
        for start in range(0, len(pixels), recipe.batch_size):
            block = np.zeros((recipe.batch_size, SIDE, SIDE, 3), np.uint8)
            part = pixels[start : start + recipe.batch_size]
            block[: len(part)] = part
            blocks.append(extractor(block.transpose(0, 3, 1, 2))["fc7"][: len(part)])
        return np.concatenate(blocks)

    took = dict.fromkeys(ways(), float("inf"))
    made: dict[str, Pixels] = {}
    for _ in range(options.repeats):
        for name, way in ways().items():
            started = time.perf_counter()
            images = [way(content) for content in contents]
            took[name] = min(took[name], time.perf_counter() - started)
            made[name] = np.stack(images)
    reference = made["featx (Pillow)"]
    expected = features(reference)
    rows = []
    for name, pixels in made.items():
        distance = np.abs(pixels.astype(int) - reference)
        worst = np.abs(features(pixels) - expected).max() / np.abs(expected).max()
        rows.append(
            [
                name,
                f"{1000 * took[name] / len(contents):.2f}",
                f"{took['featx (Pillow)'] / took[name]:.2f}",
                f"{(distance.max(axis=(1, 2, 3)) == 0).mean():.0%}",
                f"{distance.max()}",
                f"{distance.mean():.3f}",
                f"{worst:.1%}" if worst else "0",
            ]
        )
    print(machine())
    header = ["way", "ms", "ratio", "images equal", "largest pixel", "mean pixel", "fc7"]
    print("\n".join(table(header, rows)))


if __name__ == "__main__":
    main()
