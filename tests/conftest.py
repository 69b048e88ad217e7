"""Fixtures: small images, each in its own colours, and the real ones where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[2] / "shared" / "data"


def write_photo(path: Path, seed: int, size: tuple[int, int] = (80, 64)) -> None:
    """A smooth random picture: blobs of colour, different for every seed."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 6, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=92)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 11 photos in three classes."""
    folder = tmp_path / "photos"
    for index in range(11):
        write_photo(folder / f"{'abc'[index % 3]}" / f"{index:02d}.jpg", index, (70 + 3 * index, 64))
    return folder


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """267 real ImageNet photos; tests that need them are skipped, saying so, where they are not."""
    folder = SHARED / "imagenet-sample"
    if not folder.is_dir():
        pytest.skip("the real images are not on this machine")
    return folder


@pytest.fixture(autouse=True)
def no_featx_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell sets must not steer the tests."""
    for name in list(os.environ):
        if name.startswith("FEATX_"):
            monkeypatch.delenv(name)
