"""Every kind of file becomes the pixels or the failure it should."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from corpus import BAD, GOOD, Case, write_corpus, write_leftovers
from PIL import Image

from featx.images.bad_image import BadImage
from featx.images.decode import decode, open_image, pillow_settings, to_rgb
from featx.images.preprocess import Preprocess
from featx.images.reader import BlockReader
from featx.images.sources.read import read_file
from featx.images.sources.scan import scan
from featx.status import Status

PLAIN = Preprocess(64, 56, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Case]]:
    folder = tmp_path_factory.mktemp("corpus")
    cases = write_corpus(folder)
    return folder, cases


def test_the_corpus_has_at_least_45_kinds_and_no_two_colours_alike(corpus):
    _, cases = corpus
    assert len(cases) == len(GOOD) + len(BAD) >= 45
    assert len({case.colour for case in cases}) == len(cases)


def test_every_file_of_the_corpus_becomes_its_own_colour_or_its_own_failure(corpus):
    folder, cases = corpus
    manifest = scan(folder)
    assert list(manifest.paths) == [case.name for case in cases]
    with pillow_settings():
        block = BlockReader(manifest, PLAIN, len(cases)).block(0)
    for place, case in enumerate(cases):
        assert Status(block.status[place]) == case.status, (case, block.reasons.get(place))
        if case.shown is None:
            assert not block.pixels[place].any(), case
            assert block.reasons[place], case
        else:
            centre = block.pixels[place].astype(float)[:, 26:30, 26:30].mean(axis=(1, 2))
            if case.tolerance == 0 and case.name == b"one-bit.png":
                centre = block.pixels[place].astype(float).mean(axis=(1, 2))
                assert np.abs(centre - case.shown).max() < 12, (case, centre)
            else:
                assert np.abs(centre - case.shown).max() <= case.tolerance, (case, centre)


def test_what_is_left_out_is_counted_with_its_reason(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    expected = write_leftovers(tmp_path)
    assert scan(tmp_path).skipped == expected


def test_exif_orientation_is_counted_and_applied_only_when_asked(tmp_path):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    tags = Image.Exif()
    tags[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=tags, quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    (plain, orientation), (turned, _) = decode(content), decode(content, exif=True)
    assert (orientation, plain.size, turned.size) == (6, (40, 20), (20, 40))
    # Orientation 6: the stored left edge is the top of the scene.
    assert turned.getpixel((10, 5))[0] > 200
    assert turned.getpixel((10, 35))[0] < 50


def test_sixteen_bit_mid_grey_stays_mid_grey_where_pillow_alone_makes_it_white(tmp_path):
    values = np.full((8, 8), 32896, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image, _ = decode((tmp_path / "a.png").read_bytes())
    assert image.getpixel((0, 0)) == (128, 128, 128)


def test_a_float_image_beyond_255_is_scaled_from_its_least_to_its_greatest():
    image = Image.fromarray(np.array([[-500.0, 0.0, 1500.0]], np.float32))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 64, 255]


def test_a_fifo_is_refused_at_once_and_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(BadImage) as caught:
        read_file(tmp_path / "x.jpg")
    assert caught.value.status == Status.SPECIAL_FILE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_no_cut_of_a_file_ever_decodes_to_half_a_picture(kind, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole", kind)
    whole = (tmp_path / "whole").read_bytes()
    expected = np.asarray(decode(whole)[0])
    lengths = list(range(1, len(whole), max(1, len(whole) // 60)))
    assert len(lengths) >= 50
    for length in lengths:
        with pillow_settings():
            try:
                image, _ = decode(whole[:length])
            except BadImage:
                continue
        assert np.array_equal(np.asarray(image), expected), f"{kind} cut at {length} of {len(whole)}"


@pytest.mark.parametrize(("kind", "status"), [("ico", Status.NOT_AN_IMAGE), ("jp2", Status.UNSUPPORTED)])
def test_formats_off_the_list_are_not_opened(tmp_path, kind, status):
    Image.new("RGB", (32, 32)).save(tmp_path / f"a.{kind}")
    with pytest.raises(BadImage) as caught:
        open_image((tmp_path / f"a.{kind}").read_bytes())
    assert caught.value.status == status


def test_a_png_whose_pixels_were_changed_is_noticed_by_its_checksum(tmp_path):
    noise = np.random.default_rng(2).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = bytearray((tmp_path / "a.png").read_bytes())
    for place in range(60, len(whole) - 20, 200):
        changed = bytearray(whole)
        changed[place] ^= 4
        with pytest.raises(BadImage) as caught:
            decode(bytes(changed))
        assert caught.value.status == Status.DAMAGED


@pytest.mark.parametrize("how", [{"rowsperstrip": 8}, {"tile": (16, 16)}, {"predictor": True}])
def test_a_deflated_tiff_whose_pixels_were_changed_is_noticed_by_its_checksums(how):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
    pixels[::2] = 7
    written = io.BytesIO()
    tifffile.imwrite(written, pixels, compression="zlib", photometric="rgb", **how)
    content = written.getvalue()
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        start, length = file.pages.first.dataoffsets[0], file.pages.first.databytecounts[0]
    np.testing.assert_array_equal(np.asarray(decode(content)[0]), pixels)
    accepted = 0
    for place in range(start + 2, start + length):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        with contextlib.suppress(BadImage):
            np.testing.assert_array_equal(np.asarray(decode(bytes(damaged))[0]), pixels)
            accepted += 1
    assert accepted < length // 20


def test_a_float_pnm_is_scaled_as_floats_are():
    pfm = b"Pf\n2 1\n-1.0\n" + np.array([0.5, 1.0], "<f4").tobytes()
    assert np.asarray(decode(pfm)[0])[0, :, 0].tolist() == [128, 255]


def test_the_transparent_value_of_a_16_bit_png_is_white(tmp_path):
    values = np.array([[1000, 65535, 500]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1000)
    assert np.asarray(decode((tmp_path / "a.png").read_bytes())[0])[0, :, 0].tolist() == [255, 255, 2]


def test_pixels_all_the_same_and_out_of_range_mean_nothing():
    with pytest.raises(BadImage) as caught:
        to_rgb(Image.fromarray(np.full((4, 4), -1.0, np.float32)))
    assert caught.value.status == Status.UNSUPPORTED


def test_a_tiffs_own_orientation_is_applied_as_pillow_and_torchvision_apply_it(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    content = (tmp_path / "a.tif").read_bytes()
    for exif in (False, True):
        image, orientation = decode(content, exif=exif)
        assert (image.size, orientation) == ((20, 40), 1)


@pytest.mark.parametrize("method", [0, 8, 12, 14])
def test_a_damaged_member_of_a_zip_is_one_bad_image_whatever_it_was_packed_with(tmp_path, method):
    import zipfile

    noise = np.random.default_rng(3).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.bmp")
    with zipfile.ZipFile(tmp_path / "s.zip", "w", method) as archive:
        archive.write(tmp_path / "a.bmp", "a.bmp")
    content = bytearray((tmp_path / "s.zip").read_bytes())
    content[300:700] = bytes(b ^ 255 for b in content[300:700])
    (tmp_path / "s.zip").write_bytes(content)
    block = BlockReader(scan(tmp_path / "s.zip"), PLAIN, 1).block(0)
    assert block.status.tolist() == [Status.DAMAGED]


def test_a_file_that_cannot_be_read_is_unreadable_and_says_why(tmp_path):
    (tmp_path / "file.jpg").write_bytes(b"x")
    with pytest.raises(BadImage, match="Not a directory") as caught:
        read_file(tmp_path / "file.jpg" / "x.jpg")
    assert caught.value.status == Status.UNREADABLE
