"""Write one file of every kind featx can meet, good and bad, each good one in a colour of its own.

    python tests/corpus.py FOLDER      # to look at them

A misplaced row shows: no two good images have the same colour.
"""

from __future__ import annotations

import colorsys
import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featx.status import Status

Colour = tuple[int, int, int]
SIZE = (60, 48)


@dataclass(frozen=True)
class Case:
    """One file of the corpus.

    `shown` is the colour featx must see, with the tolerance of its lossy format; None for bad files.
    """

    name: bytes
    status: Status
    colour: Colour
    shown: Colour | None
    tolerance: int


def solid(colour: Colour, mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("RGB", size, colour).convert(mode)


def grey_of(colour: Colour) -> int:
    return solid(colour, "L").getpixel((0, 0))


def jpeg(**options: object) -> Callable[[Path, Colour], None]:
    def write(path: Path, colour: Colour) -> None:
        solid(colour).save(path, "JPEG", quality=95, **options)

    return write


def saved(kind: str, mode: str = "RGB", **options: object) -> Callable[[Path, Colour], None]:
    def write(path: Path, colour: Colour) -> None:
        solid(colour, mode).save(path, kind, **options)

    return write


def exif(orientation: int) -> Callable[[Path, Colour], None]:
    def write(path: Path, colour: Colour) -> None:
        tags = Image.Exif()
        tags[0x0112] = orientation
        solid(colour).save(path, "JPEG", quality=95, exif=tags)

    return write


def alpha(kind: str, mode: str, opacity: int) -> Callable[[Path, Colour], None]:
    def write(path: Path, colour: Colour) -> None:
        image = solid(colour, "RGBA")
        image.putalpha(opacity)
        image.convert(mode).save(path, kind, lossless=True)

    return write


def animated(kind: str, **options: object) -> Callable[[Path, Colour], None]:
    def write(path: Path, colour: Colour) -> None:
        frames = [solid((0, 0, 0)), solid((255, 255, 255))]
        solid(colour).save(path, kind, save_all=True, append_images=frames, duration=100, **options)

    return write


def array(kind: str, scale: float, dtype: str) -> Callable[[Path, Colour], None]:
    """A grey image of more than 8 bits: the grey of the colour times `scale`."""

    def write(path: Path, colour: Colour) -> None:
        values = np.full((SIZE[1], SIZE[0]), grey_of(colour) * scale).astype(dtype)
        Image.fromarray(values).save(path, kind)

    return write


def palette_transparent(path: Path, colour: Colour) -> None:
    image = solid(colour).quantize(4)
    image.save(path, "PNG", transparency=image.getpixel((0, 0)))


def mpo(path: Path, colour: Colour) -> None:
    solid(colour).save(path, "MPO", save_all=True, append_images=[solid((0, 0, 0))], quality=95)


def trailing_garbage(path: Path, colour: Colour) -> None:
    jpeg()(path, colour)
    with path.open("ab") as file:
        file.write(b"\0garbage\xff\xd9" * 50)


def sized(width: int, height: int) -> Callable[[Path, Colour], None]:
    def write(path: Path, colour: Colour) -> None:
        solid(colour, size=(width, height)).save(path, "PNG")

    return write


def link_to_file(path: Path, colour: Colour) -> None:
    target = path.parent / ".linked-to.png"
    saved("PNG")(target, colour)
    path.symlink_to(target.name)


def content(data: bytes) -> Callable[[Path, Colour], None]:
    return lambda path, _colour: path.write_bytes(data) and None


def cut(kind: str, share: float) -> Callable[[Path, Colour], None]:
    """A file of noise that ends too early."""

    def write(path: Path, _colour: Colour) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
        Image.fromarray(noise).save(path, kind)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82"


def bad_crc(path: Path, colour: Colour) -> None:
    saved("PNG")(path, colour)
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF  # the height
    path.write_bytes(data)


def nan_tiff(path: Path, _colour: Colour) -> None:
    values = np.full((SIZE[1], SIZE[0]), np.nan, np.float32)
    Image.fromarray(values).save(path, "TIFF")


GREY, WHITE = "grey", "white"
HALF = "half over white"
# name, how it is written, what is seen (colour unless said), tolerance
GOOD: list[tuple[bytes, Callable[[Path, Colour], None], str, int]] = [
    (b"rgb.jpg", jpeg(), "", 4),
    (b"grey.jpg", saved("JPEG", "L", quality=95), GREY, 4),
    (b"cmyk.jpg", saved("JPEG", "CMYK", quality=95), "", 6),
    (b"progressive.jpg", jpeg(progressive=True), "", 4),
    (b"no-subsampling.jpeg", jpeg(subsampling=0), "", 4),
    (b"exif-6.jpg", exif(6), "", 4),
    (b"exif-8.jpe", exif(8), "", 4),
    (b"trailing-garbage.jpg", trailing_garbage, "", 4),
    (b"mpo.mpo", mpo, "", 4),
    (b"UPPER.JPG", jpeg(), "", 4),
    (b"rgb.png", saved("PNG"), "", 0),
    (b"palette.png", saved("PNG", "P"), "", 60),
    (b"palette-transparent.png", palette_transparent, WHITE, 0),
    (b"rgba-half.png", alpha("PNG", "RGBA", 128), HALF, 2),
    (b"rgba-clear.png", alpha("PNG", "RGBA", 0), WHITE, 0),
    (b"la-half.png", alpha("PNG", "LA", 128), "grey half over white", 2),
    (b"one-bit.png", saved("PNG", "1"), "one bit", 0),
    (b"sixteen-bit.png", array("PNG", 257, "uint16"), GREY, 0),
    (b"animated.png", animated("PNG"), "", 0),
    (b"mislabelled-png.jpg", saved("PNG"), "", 0),
    (b"rgb.bmp", saved("BMP"), "", 0),
    (b"still.gif", saved("GIF"), "", 60),
    (b"animated.gif", animated("GIF"), "", 60),
    (b"lossless.webp", saved("WEBP", lossless=True), "", 0),
    (b"lossy.webp", saved("WEBP", quality=90), "", 8),
    (b"half.webp", alpha("WEBP", "RGBA", 128), HALF, 2),
    (b"animated.webp", animated("WEBP", lossless=True), "", 0),
    (b"rgb.tiff", saved("TIFF"), "", 0),
    (b"lzw.tif", saved("TIFF", compression="tiff_lzw"), "", 0),
    (b"cmyk.tif", saved("TIFF", "CMYK"), "", 0),
    # One step of 8-bit a* moves red by 3 levels around this colour, and L* and b* are rounded in the file as well.
    (b"lab.tif", saved("TIFF", "LAB"), "", 5),
    (b"pages.tif", animated("TIFF"), "", 0),
    (b"sixteen-bit.tif", array("TIFF", 257, "uint16"), GREY, 0),
    (b"int32-8.tif", array("TIFF", 1, "int32"), GREY, 0),
    (b"int32-16.tif", array("TIFF", 257, "int32"), GREY, 0),
    (b"float-1.tif", array("TIFF", 1 / 255, "float32"), GREY, 0),
    (b"float-255.tif", array("TIFF", 1, "float32"), GREY, 0),
    (b"rgb.ppm", saved("PPM"), "", 0),
    (b"grey.pgm", saved("PPM", "L"), GREY, 0),
    (b"sixteen-bit.pgm", array("PPM", 257, "int32"), GREY, 0),
    (b"rgb.avif", saved("AVIF", quality=100), "", 4),
    (b"one-pixel.png", sized(1, 1), "", 0),
    (b"tall.png", sized(10, 400), "", 0),
    (b"wide.png", sized(400, 10), "", 0),
    (b"name with spaces.png", saved("PNG"), "", 0),
    ("ünïcode-日本.png".encode(), saved("PNG"), "", 0),
    (b"new\nline.png", saved("PNG"), "", 0),
    (b"undecodable-\xff\xfe.png", saved("PNG"), "", 0),
    (b"-dash.png", saved("PNG"), "", 0),
    (b"one/same.png", saved("PNG"), "", 0),
    (b"two/same.png", saved("PNG"), "", 0),
    (b"link.png", link_to_file, "", 0),
]
BAD: list[tuple[bytes, Callable[[Path, Colour], None], Status]] = [
    (b"empty.jpg", content(b""), Status.EMPTY),
    (b"truncated.jpg", cut("JPEG", 0.5), Status.DAMAGED),
    (b"truncated.png", cut("PNG", 0.5), Status.DAMAGED),
    (b"truncated.gif", cut("GIF", 0.5), Status.DAMAGED),
    (b"truncated.webp", cut("WEBP", 0.5), Status.DAMAGED),
    (b"truncated.tif", cut("TIFF", 0.5), Status.DAMAGED),
    (b"truncated.bmp", cut("BMP", 0.5), Status.DAMAGED),
    (b"header-only.jpg", content(b"\xff\xd8\xff\xe0\0\x10JFIF\0" + b"\0" * 20), Status.NOT_AN_IMAGE),
    (b"bad-crc.png", bad_crc, Status.NOT_AN_IMAGE),
    (b"text.jpg", content(b"this is not an image\n"), Status.NOT_AN_IMAGE),
    (b"page.png", content(b"<!DOCTYPE html><title>404</title>"), Status.NOT_AN_IMAGE),
    (b"drawing.png", content(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), Status.NOT_AN_IMAGE),
    (b"document.jpg", content(b"%PDF-1.4\n%%EOF\n"), Status.NOT_AN_IMAGE),
    (b"icon-in-disguise.png", saved("ICO"), Status.NOT_AN_IMAGE),
    (b"postscript.jpg", content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"), Status.NOT_AN_IMAGE),
    (b"bomb.png", content(png_header(50_000, 50_000)), Status.TOO_LARGE),
    (b"large.png", content(png_header(10_000, 9_000)), Status.TOO_LARGE),
    (b"elongated.png", sized(1, 40_000), Status.TOO_LARGE),
    (b"nan.tif", nan_tiff, Status.UNSUPPORTED),
    (b"broken-link.jpg", lambda path, _: path.symlink_to("nowhere.jpg"), Status.MISSING),
]


def colours(count: int) -> list[Colour]:
    """Colours far apart from each other, none of them grey.

    The grey values they turn into are all different too, so grey images can be told apart.
    """
    found: list[Colour] = []
    for index in range(count):
        hue, value = (index * 0.381966) % 1.0, 0.35 + 0.6 * index / count
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.5, value)
        found.append((round(red * 255), round(green * 255), round(blue * 255)))
    return found


def shown_colour(colour: Colour, kind: str) -> Colour:
    grey = grey_of(colour)
    if kind == GREY:
        return (grey,) * 3
    if kind == WHITE:
        return (255,) * 3
    if kind == "one bit":
        return tuple(solid(colour, "1").convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
    if kind == HALF:
        return tuple(round(c * 128 / 255 + 255 * 127 / 255) for c in colour)
    if kind == "grey half over white":
        return (round(grey * 128 / 255 + 127),) * 3
    return colour


def write_corpus(folder: Path) -> list[Case]:
    """Write all files below `folder`; the cases in the order of their paths, as a manifest lists them."""
    cases = []
    palette = iter(colours(len(GOOD) + len(BAD)))
    for name, write, kind, tolerance in GOOD:
        colour = next(palette)
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, colour)
        cases.append(Case(name, Status.DONE, colour, shown_colour(colour, kind), tolerance))
    for name, write, status in BAD:
        colour = next(palette)
        write(Path(os.fsdecode(os.path.join(os.fsencode(folder), name))), colour)
        cases.append(Case(name, status, colour, None, 0))
    return sorted(cases, key=lambda case: case.name)


def write_leftovers(folder: Path) -> dict[str, int]:
    """Write things that are no images of a manifest; how many of each reason there are."""
    (folder / "notes.txt").write_text("not an image name")
    (folder / ".hidden.png").write_bytes(b"")
    os.mkfifo(folder / "fifo.jpg")
    (folder / "no-images").mkdir()
    (folder / "folder.jpg").mkdir()
    (folder / "loop").symlink_to(".")
    return {
        "not an image name": 1,
        "hidden": 1,
        "not a regular file": 1,
        "folder without images": 2,
        "link to a folder (--follow-links follows it)": 1,
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    for case in write_corpus(target):
        print(case)
    print(write_leftovers(target))
