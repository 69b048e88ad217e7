"""Lists that name an image more than once: computed once, written to each of its rows."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from conftest import write_photo
from ranks import finish, start

import featx
from featx.extraction import pipeline
from featx.status import Status

NET = "alexnet-mini"
ENTRIES = [3, 0, 3, 1, 5, 0, 0, 2, 5, 4, 3, 6, 6]  # 5 is no image


def config(**options):
    return featx.ExtractConfig(
        backbone=NET, layers=options.pop("layers", "fc6,fc7"), device="cpu", batch_size=2, max_bad=1.0, **options
    )


@pytest.fixture
def listed(tmp_path):
    """A list that repeats entries, and a folder with a file of its own for every entry."""
    for number in range(7):
        write_photo(tmp_path / "photos" / f"{number}.jpg", number)
    (tmp_path / "photos" / "5.jpg").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("".join(f"photos/{number}.jpg\n" for number in ENTRIES))
    (tmp_path / "copies").mkdir()
    for place, number in enumerate(ENTRIES):
        shutil.copy(tmp_path / "photos" / f"{number}.jpg", tmp_path / "copies" / f"{place:02d}.jpg")
    return tmp_path / "list.txt"


@pytest.fixture
def computed(monkeypatch):
    """How many images go through the network in each block."""
    seen = []
    compute = pipeline.compute_block
    monkeypatch.setattr(
        "featx.extraction.pipeline.compute_block",
        lambda e, r, block, *rest: (seen.append(len(block.status)), compute(e, r, block, *rest)),
    )
    return seen


def same_rows(made, other):
    for layer in made:
        np.testing.assert_array_equal(made[layer], other[layer])
    for field in ("status", "sha256", "orientation", "decoder"):
        np.testing.assert_array_equal(getattr(made, field), getattr(other, field))
    assert [failure.reason for failure in made.failures()] == [failure.reason for failure in other.failures()]


def test_every_row_has_its_image_and_each_image_is_computed_once(listed, computed):
    featx.extract_features(listed, listed.with_name("list.h5"), config())
    assert sum(computed) == 7
    computed.clear()
    featx.extract_features(listed.with_name("copies"), listed.with_name("copies.h5"), config())
    assert sum(computed) == len(ENTRIES)
    made = featx.open_features(listed.with_name("list.h5"))
    assert made.paths == [f"photos/{number}.jpg" for number in ENTRIES]
    same_rows(made, featx.open_features(listed.with_name("copies.h5")))
    assert featx.verify_file(made.path, featx.VerifyConfig(all=True)).passed


def test_what_failed_in_every_row_is_tried_once_more_and_mended_in_every_row(listed, computed):
    out = listed.with_name("list.h5")
    featx.extract_features(listed, out, config())
    computed.clear()
    write_photo(listed.with_name("photos") / "5.jpg", 5)
    featx.extract_features(listed, out, config(retry_failed=True))
    assert sum(computed) == 2  # the block of two that it stands in
    made = featx.open_features(out)
    rows = [place for place, number in enumerate(ENTRIES) if number == 5]
    assert (made.status == Status.DONE).all()
    np.testing.assert_array_equal(made["fc7"][rows[0]], made["fc7"][rows[1]])
    featx.extract_features(listed, listed.with_name("fresh.h5"), config())
    same_rows(made, featx.open_features(listed.with_name("fresh.h5")))


def test_files_that_grow_compute_new_images_once(listed, computed):
    out, whole = listed.with_name("list.h5"), listed.read_text()
    listed.write_text("photos/0.jpg\nphotos/3.jpg\n")
    featx.extract_features(listed, out, config(layers="fc7"))
    listed.write_text(whole)
    computed.clear()
    featx.extract_features(listed, out, config(layers="fc7", update=True))
    assert sum(computed) == 5
    computed.clear()
    featx.extract_features(listed, out, config(update=True))
    assert sum(computed) == 7
    featx.extract_features(listed, listed.with_name("fresh.h5"), config())
    assert out.read_bytes() == listed.with_name("fresh.h5").read_bytes()


def test_the_plan_says_so(featx, listed):
    said = featx("extract", listed, "-b", NET, "-l", "fc7", "--max-bad", "1", "-o", listed.with_name("x.h5"))
    assert "6 entries repeat an image that stands before in the list; each image is computed once" in said.err


def test_processes_that_fill_a_file_together_do_the_same(listed):
    words = [
        "-m",
        "featx",
        "extract",
        str(listed),
        "-b",
        NET,
        "-l",
        "fc6,fc7",
        "--device",
        "cpu",
        "--batch-size",
        "2",
    ]
    out = listed.with_name("list.h5")
    codes, _, said = finish(start(2, *words, "--max-bad", "1", "-o", str(out)))
    assert codes == [0, 0], said
    featx.extract_features(listed, listed.with_name("fresh.h5"), config())
    same_rows(featx.open_features(out), featx.open_features(listed.with_name("fresh.h5")))
