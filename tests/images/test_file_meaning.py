"""What a file means: every row of the table in docs/images.md, against values computed from the header here."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from file_formats import bmp, chunk, png, tiff

from featx.images.bad_image import BadImage
from featx.images.decode import decode
from featx.status import Status

H, W = 5, 8
DRAWS = np.random.default_rng(0)


def samples(bits: int, channels: int) -> np.ndarray:
    """(H, W, C) unsigned, black and white among them."""
    values = DRAWS.integers(0, 2**bits, (H, W, channels), dtype=np.uint64)
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    return values


def shown(content: bytes, *, exif: bool = False) -> np.ndarray:
    return np.asarray(decode(content, exif=exif)[0]).astype(int)


def eight(unit: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3) values from 0 to 1 as RGB."""
    return np.broadcast_to(np.rint(unit * 255), (*unit.shape[:2], 3)).astype(int)


def over_white(unit: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return unit * alpha + (1 - alpha)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [None, 0, 1])
def test_grey_png(bits, clear):
    values = samples(bits, 1)
    alpha = np.ones_like(values) if clear is None else values != clear
    found = shown(png(values, bits, 0, clear=() if clear is None else (clear,)))
    expected = eight(over_white(values / (2**bits - 1), alpha))
    assert (found == expected).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("clear", [False, True])
def test_colour_png(bits, clear):
    values = samples(bits, 3)
    colour = tuple(int(v) for v in values[2, 3])
    alpha = ~(values == values[2, 3]).all(2, keepdims=True) if clear else np.ones((H, W, 1))
    found = shown(png(values, bits, 2, clear=colour if clear else ()))
    assert (found == eight(over_white(values / (2**bits - 1), alpha))).all()


def test_only_the_lower_byte_of_an_8_bit_clear_colour_counts():
    values = samples(8, 3)
    colour = tuple(int(v) | 0x500 for v in values[2, 3])
    alpha = ~(values == values[2, 3]).all(2, keepdims=True)
    assert (shown(png(values, 8, 2, clear=colour)) == eight(over_white(values / 255, alpha))).all()


@pytest.mark.parametrize(("colour", "channels"), [(4, 1), (6, 3)])
@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_alpha(bits, colour, channels):
    values = samples(bits, channels + 1)
    unit = values / (2**bits - 1)
    found = shown(png(values, bits, colour))
    expected = eight(over_white(unit[..., :channels], unit[..., channels:]))
    # Of 8 bits, Pillow composes with 8 bits as well, which may round another way.
    assert np.abs(found - expected).max() <= (1 if bits == 8 else 0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("clear", [False, True])
def test_palette_png(bits, clear):
    table = DRAWS.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    alphas = np.full(2**bits, 255, np.uint8)
    alphas[0] = 0 if clear else 255
    values = samples(bits, 1)
    found = shown(png(values, bits, 3, palette=table.tobytes(), palette_alpha=alphas.tobytes() if clear else b""))
    index = values[..., 0].astype(int)
    assert (found == eight(over_white(table[index] / 255, alphas[index][..., None] / 255))).all()


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16, 32])
def test_grey_tiff_of_unsigned_integers(bits, order, photometric):
    values = samples(bits, 1)
    found = shown(tiff(values, bits, photometric, order=order))
    unit = values / (2**bits - 1)
    assert (found == eight(1 - unit if photometric == 0 else unit)).all()


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("largest", [1, 255])
def test_grey_tiff_of_floats(bits, photometric, largest):
    values = DRAWS.random((H, W, 1)) * largest
    values[0, 0], values[0, 1] = 0, largest
    stored = values.astype(f"f{bits // 8}").astype(float)
    found = shown(tiff(values, bits, photometric, sample_format=3))
    unit = stored / largest
    between = np.isclose(unit * 255 % 1, 0.5)  # as near to one level as to the next
    expected = eight(1 - unit if photometric == 0 else unit)
    assert ((found == expected) | between).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_tiff_that_is_never_negative_goes_to_the_largest_number(bits):
    largest = 2 ** (bits - 1) - 1
    values = DRAWS.integers(0, largest + 1, (H, W, 1))
    assert (shown(tiff(values, bits, 1, sample_format=2)) == eight(values / largest)).all()


def test_signed_tiff_with_negative_values_goes_from_its_least_to_its_greatest():
    values = DRAWS.integers(-1000, 3000, (H, W, 1))
    unit = (values - values.min()) / (values.max() - values.min())
    assert (shown(tiff(values, 16, 1, sample_format=2)) == eight(unit)).all()


@pytest.mark.parametrize(("largest", "top"), [(255, 255), (60000, 65535), (2**32 - 1, 2**32 - 1)])
def test_32_bit_integers_go_to_the_smallest_range_that_holds_them(largest, top):
    values = DRAWS.integers(0, largest + 1, (H, W, 1), dtype=np.uint64)
    values[0, 0] = largest
    assert (shown(tiff(values, 32, 1)) == eight(values / top)).all()


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(("bits", "big"), [(8, False), (16, False), (16, True)])
def test_colour_tiff(bits, big, planar, compression):
    if planar and compression == 8:
        pytest.skip("the writer compresses one strip only")
    values = samples(bits, 3)
    found = shown(tiff(values, bits, 2, planar=planar, big=big, compression=compression))
    assert (found == eight(values / (2**bits - 1))).all()


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_with_a_fourth_channel(bits, kind):
    values = samples(bits, 4)
    if kind == 1:  # premultiplied: no colour is above its alpha
        values[..., :3] = np.minimum(values[..., :3], values[..., 3:])
    unit = values / (2**bits - 1)
    colours, alpha = unit[..., :3], unit[..., 3:]
    found = shown(tiff(values, bits, 2, extra=kind))
    expected = {0: colours, 1: colours + 1 - alpha, 2: over_white(colours, alpha)}[kind]
    # Of 8 bits, Pillow divides premultiplied colours by their alpha and composes again.
    tolerance = 0 if bits == 16 else {0: 0, 1: 2, 2: 1}[kind]
    assert np.abs(found - eight(expected)).max() <= tolerance


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_palette_tiff(bits):
    table = DRAWS.integers(0, 65536, (2**bits, 3))
    values = samples(bits, 1)
    expected = table[values[..., 0].astype(int)] / 65535
    found = shown(tiff(values, bits, 3, colormap=table))
    # Pillow keeps the upper byte of a palette's 16 bits.
    assert np.abs(found - eight(expected)).max() <= (0 if bits == 16 else 1)


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_tiff(bits):
    values = samples(bits, 4)
    unit = values / (2**bits - 1)
    expected = eight((1 - unit[..., :3]) * (1 - unit[..., 3:]))
    assert np.abs(shown(tiff(values, bits, 5)) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiffs_own_orientation_is_applied(bits, orientation):
    values = samples(bits, 1)
    straight = eight(values / (2**bits - 1))
    turn: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }  # fmt: skip
    assert (shown(tiff(values, bits, 1, orientation=orientation)) == turn[orientation](straight)).all()


@pytest.mark.parametrize(("content", "named"), [
    (tiff(samples(16, 3), 16, 6), "16 bits of YCBCR"),
    (tiff(samples(16, 3), 16, 8), "16 bits of CIELAB"),
    (tiff(samples(16, 5), 16, 2, extra=0), "5 channels"),
    (tiff(np.full((H, W, 1), np.nan), 32, 1, sample_format=3), "NaN"),
    (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC"),
    (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64), "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64), "JPEG 2000"),
    (b"8BPS\0\1" + bytes(64), "Photoshop"),
])  # fmt: skip
def test_a_variety_without_a_defined_conversion_is_unsupported_by_name(content, named):
    with pytest.raises(BadImage, match=named) as refused:
        decode(content)
    assert refused.value.status == Status.UNSUPPORTED


def jpeg_frame(marker: int, bits: int) -> bytes:
    frame = struct.pack(">BHHB", bits, H, W, 1) + b"\1\x11\0"
    scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(20) + b"\xff\xd9"
    return b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">H", 2 + len(frame)) + frame + scan


@pytest.mark.parametrize(("marker", "bits", "named"), [(0xC1, 12, "JPEG of 12 bits"), (0xC3, 8, "lossless JPEG")])
def test_jpegs_of_other_kinds_are_unsupported_by_name(marker, bits, named):
    with pytest.raises(BadImage, match=named) as refused:
        decode(jpeg_frame(marker, bits))
    assert refused.value.status == Status.UNSUPPORTED


MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@pytest.mark.parametrize(("header", "alpha"), [(40, None), (108, 0), (124, 0), (124, 255), (124, "some")])
def test_bmp_of_32_bits(header, alpha):
    """An alpha that is 0 everywhere is none: it is what programs write that leave the byte empty."""
    values = DRAWS.integers(0, 256, (H, W, 4), dtype=np.uint32)
    if alpha != "some":
        values[..., 3] = alpha or 0
    packed = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2] | values[..., 3] << 24
    found = shown(bmp(packed, header=header, masks=None if alpha is None else MASKS))
    share = values[..., 3:] / 255 if alpha == "some" else np.ones((H, W, 1))
    assert np.abs(found - eight(over_white(values[..., :3] / 255, share))).max() <= (1 if alpha == "some" else 0)


@pytest.mark.parametrize(("masks", "bits"), [(None, (5, 5, 5)), ((0xF800, 0x7E0, 0x1F, 0), (5, 6, 5))])
def test_bmp_of_16_bits(masks, bits):
    values = np.stack([DRAWS.integers(0, 2**n, (H, W)) for n in bits], 2)
    packed = values[..., 0] << (bits[1] + bits[2]) | values[..., 1] << bits[2] | values[..., 2]
    found = shown(bmp(packed, bits=16, masks=masks))
    assert np.abs(found - eight(values / (2 ** np.array(bits) - 1))).max() <= 1


@pytest.mark.parametrize(("kind", "channels"), [(b"P5", 1), (b"P6", 3)])
@pytest.mark.parametrize("most", [1, 15, 100, 255, 4095, 65535])
def test_pnm_of_any_largest_value(kind, channels, most):
    values = DRAWS.integers(0, most + 1, (H, W, channels))
    content = kind + b"\n%d %d\n%d\n" % (W, H, most) + values.astype(">u2" if most > 255 else "u1").tobytes()
    assert np.abs(shown(content) - eight(values / most)).max() <= (1 if most < 255 or most == 4095 else 0)


def big_text(kind: bytes) -> bytes:
    packed = zlib.compress(bytes(3_000_000))
    return {
        b"zTXt": chunk(b"zTXt", b"Comment\0\0" + packed),
        b"iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed),
        b"iCCP": chunk(b"iCCP", b"icc\0\0" + packed),
        b"tEXt": chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000),
    }[kind]


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_any_amount_of_text_beside_the_pixels_of_a_png_leaves_the_picture(kind):
    values = samples(8, 3)
    assert (shown(png(values, 8, 2, extra=big_text(kind))) == values).all()
    plain = png(values, 8, 2)
    behind = plain[:-12] + big_text(kind) + plain[-12:]
    assert (shown(behind) == values).all()


def jpeg_with_exif(entries: list[tuple[int, int, int, bytes]], tail: bytes = b"") -> bytes:
    import io

    from PIL import Image

    picture = Image.fromarray(np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 16, 0))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95)
    plain = out.getvalue()
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI4s", *e) for e in entries) + bytes(4)
    block = b"Exif\0\0II*\0\x08\0\0\0" + ifd + tail
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]


ROTATED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(("name", "entries", "tail"), [
    ("good", [ROTATED], b""),
    ("a negative unsigned fraction", [ROTATED, (0x011A, 5, 1, struct.pack("<I", 0x26 + 12))], struct.pack("<ii", -1, 0)),
    ("a pointer out of the file", [ROTATED, (0x8769, 4, 1, struct.pack("<I", 60000))], b""),
    ("a type that does not exist", [ROTATED, (0x0131, 99, 1, b"abcd")], b""),
    ("a million values", [ROTATED, (0x0131, 2, 1_000_000, struct.pack("<I", 8))], b""),
])  # fmt: skip
@pytest.mark.parametrize("exif", [False, True])
def test_damaged_exif_is_no_damaged_picture(name, entries, tail, exif):
    image, orientation = decode(jpeg_with_exif(entries, tail), exif=exif)
    assert orientation == 6
    assert image.size == ((16, 24) if exif else (24, 16))
    column = np.asarray(image)[:, 8, 0] if exif else np.asarray(image)[8, :, 0]
    assert np.abs(column.astype(int) - np.arange(0, 240, 10)).max() <= 3


def test_a_folder_among_the_images_is_one_bad_image(tmp_path: Path):
    from featx.images.sources.read import read_file

    with pytest.raises(BadImage, match="a folder") as refused:
        read_file(tmp_path)
    assert refused.value.status == Status.SPECIAL_FILE


def many_scans(count: int, side: int = 3000) -> bytes:
    """A progressive JPEG whose last scan is there many times: a few bytes, and the work of a whole picture, each."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, "JPEG", quality=1, progressive=True)
    whole = out.getvalue()
    last = whole.rfind(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + b"\xff\xd9"


def test_a_picture_that_takes_too_long_is_one_bad_image():
    started = time.monotonic()
    with pytest.raises(BadImage, match=r"not decoded within 0\.5 s \(--image-timeout\)") as refused:
        decode(many_scans(4000), timeout_s=0.5)
    assert refused.value.status == Status.TOO_SLOW
    assert time.monotonic() - started < 20
    assert decode(many_scans(3, 64), timeout_s=20.0)[0].size == (64, 64)
