"""What the GPU's decoder is given, and what is made of its images; the code that runs there, on torchcodec's CPU decoder."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpus import write_corpus
from PIL import Image

from featx.errors import DeviceUnavailable
from featx.extraction.recipe import Recipe
from featx.images import device_decode as on_device
from featx.images.block import Encoded
from featx.images.decode import open_image, pillow_settings
from featx.images.device_decode import DeviceDecoder, NotDecodable, fast_pixels
from featx.images.preprocess import Preprocess
from featx.images.reader import BlockReader, suits_the_device
from featx.images.sources.scan import scan
from featx.status import Decoder, Status

PLAIN = Preprocess(64, 56, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CPU = torch.device("cpu")


def jpeg(width: int, height: int, seed: int = 0, mode: str = "RGB", **options) -> bytes:
    """A smooth picture, as a photograph is."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 92, **options})
    return file.getvalue()


def decoded(contents: list[bytes], preprocess: Preprocess = PLAIN) -> torch.Tensor:
    files = [Encoded(content, open_image(content).size[0] * open_image(content).size[1]) for content in contents]
    return DeviceDecoder(preprocess, CPU)(files)


def decoded_fast(contents: list[bytes], preprocess: Preprocess) -> torch.Tensor:
    return torch.stack([torch.from_numpy(fast_pixels(content, preprocess).copy()) for content in contents])


SIZES = [(100, 80), (80, 100), (64, 64), (64, 200), (300, 90), (500, 375), (40, 90), (30, 30), (65, 64)]


@pytest.mark.parametrize("way", [decoded, decoded_fast])
@pytest.mark.parametrize(
    "change", [{}, {"squash": True}, {"mirror": True}, {"interpolation": "bicubic"}, {"crop": 64}]
)
def test_pixels_are_pillows_within_a_level_or_two(change, way):
    preprocess = replace(PLAIN, **change)
    contents = [jpeg(*size, seed) for seed, size in enumerate([*SIZES, SIZES[0]])]
    contents.append(jpeg(100, 80, 3, "L"))
    found = way(contents, preprocess)
    assert found.shape == (len(contents), 3, preprocess.crop, preprocess.crop)
    for content, pixels in zip(contents, found, strict=True):
        expected = preprocess.pixels(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        distance = np.abs(pixels.numpy().astype(int) - expected)
        assert distance.max() <= 2, open_image(content).size
        assert distance.mean() < 0.3


def test_an_image_smaller_than_the_crop_gets_a_black_border():
    small = replace(PLAIN, resize=40)
    content = jpeg(40, 90)
    pixels = decoded([content], small)[0].numpy()
    expected = small.pixels(Image.open(io.BytesIO(content)))
    assert (pixels[:, :, :8] == 0).all()
    assert (pixels[:, :, -8:] == 0).all()
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_only_whole_baseline_jpegs_in_grey_or_colour_are_given_to_the_device():
    def suited(content: bytes, preprocess: Preprocess = PLAIN) -> bool:
        return suits_the_device(open_image(content), content, preprocess)

    whole = jpeg(100, 80)
    assert suited(whole)
    assert suited(whole + b"\0" * 16)
    assert suited(jpeg(100, 80, mode="L"))
    assert not suited(whole[:-2])
    assert not suited(whole[: len(whole) // 2])
    assert not suited(jpeg(100, 80, progressive=True))
    assert not suited(jpeg(100, 80, mode="CMYK"))
    assert not suited(jpeg(100, 80, keep_rgb=True))
    png = io.BytesIO()
    Image.new("RGB", (100, 80)).save(png, "PNG")
    assert not suited(png.getvalue())
    long = jpeg(2, 20_000)
    assert not suited(long, replace(PLAIN, resize=2048, crop=2048))
    assert suited(long, replace(PLAIN, squash=True))


def test_a_batch_with_a_file_that_is_none_is_refused_as_a_whole():
    broken = Encoded(b"\xff\xd8 no more of it \xff\xd9", 8000)
    with pytest.raises(NotDecodable):
        DeviceDecoder(PLAIN, CPU)([Encoded(jpeg(100, 80), 8000), broken])


def test_large_images_are_decoded_a_few_at_a_time(monkeypatch):
    contents = [jpeg(*size, seed) for seed, size in enumerate(SIZES)]
    expected = decoded(contents)
    monkeypatch.setattr(on_device, "_PIXELS_AT_ONCE", 10_000)
    files = [Encoded(b"", pixels) for pixels in (4000, 6000, 1, 90_000, 5000, 4000, 2000)]
    assert [[file.pixels for file in part] for part in on_device._portions(files)] == [
        [4000, 6000], [1], [90_000], [5000, 4000], [2000],
    ]  # fmt: skip
    assert torch.equal(decoded(contents), expected)


def test_the_fast_way_takes_what_it_can_and_leaves_the_rest_to_pillow(tmp_path):
    cases = write_corpus(tmp_path)
    plain, fast = (BlockReader(scan(tmp_path), PLAIN, len(cases), fast=fast) for fast in (False, True))
    with pillow_settings():
        expected, found = plain.block(0), fast.block(0)
        kept = plain.block(0, keep_encoded=True).encoded
    np.testing.assert_array_equal(np.flatnonzero(found.decoder), sorted(kept))
    assert set(found.decoder) == {Decoder.PILLOW, Decoder.FAST}
    for name in ("status", "sha256", "orientation", "reasons"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    distance = np.abs(found.pixels.astype(int) - expected.pixels).max(axis=(1, 2, 3))
    assert not distance[found.decoder == Decoder.PILLOW].any()
    assert distance.max() <= 2


@pytest.mark.parametrize("exif", [False, True])
def test_what_is_kept_for_the_device_is_decoded_by_pillow_after_all_to_the_same_block(tmp_path, exif):
    cases = write_corpus(tmp_path)
    reader = BlockReader(scan(tmp_path), PLAIN, len(cases), exif=exif)
    with pillow_settings():
        plain, kept = reader.block(0), reader.block(0, keep_encoded=True)
        assert len(kept.encoded) >= 3
        assert all(kept.status[place] == Status.DONE and not kept.pixels[place].any() for place in kept.encoded)
        if exif:
            assert all(kept.orientation[place] == 1 for place in kept.encoded)
        reader.decode_encoded(kept)
    assert plain.encoded is None
    for name in ("pixels", "status", "sha256", "orientation", "decoder", "reasons"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(plain, name), err_msg=name)
    assert set(kept.decoder) == {Decoder.PILLOW}


def turned(content: bytes, *, first: bytes = b"") -> bytes:
    """The file with EXIF that says the picture lies on its side, after another APP1 segment where one is given."""
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segments = b"".join(b"\xff\xe1" + (len(one) + 2).to_bytes(2, "big") + one for one in (first, exif) if one)
    return content[:2] + segments + content[2:]


@pytest.mark.parametrize("way", [decoded, decoded_fast])
@pytest.mark.parametrize("first", [b"", b"http://ns.adobe.com/xap/1.0/\0<x/>"], ids=["exif", "xmp, exif"])
@pytest.mark.parametrize("fill", [b"", b"\xff\xff"], ids=["", "fill bytes"])
def test_a_photo_on_its_side_is_not_turned_behind_our_back(way, first, fill):
    plain = jpeg(100, 80)
    content = turned(plain, first=first)
    content = content[:2] + fill + content[2:]
    assert open_image(content).getexif()[0x0112] == 6
    assert torch.equal(way([content], PLAIN), way([plain], PLAIN))


def test_torchcodec_would_have_turned_it():
    load = on_device.load_decoder()
    encoded = torch.frombuffer(bytearray(turned(jpeg(100, 80))), dtype=torch.uint8)
    assert load([encoded], mode="RGB")[0].shape == (3, 100, 80)


def test_a_torchcodec_that_cannot_be_loaded_is_named_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text(
        "raise OSError('libcudart.so.13: cannot open\\nshared object')"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    on_device.load_decoder.cache_clear()
    with pytest.raises(DeviceUnavailable, match=r"libcudart.so.13: cannot open\. Install .* --decode cpu$"):
        Recipe.plan(backbone="alexnet", layers="fc7", weights="random:0", pool="none", device="cpu", decode="fast")
    on_device.load_decoder.cache_clear()
