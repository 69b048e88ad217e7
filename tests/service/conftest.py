"""One service with everything for the tests of this folder, and what it is made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_photo
from serving import NET, Served, serving

import featx


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ (12 of three classes), f.h5 with conv5 pooled and fc7, heads svm and softmax on fc7, one on conv5."""
    folder = tmp_path_factory.mktemp("service")
    for index in range(12):
        write_photo(folder / "photos" / "abc"[index % 3] / f"{index:02d}.jpg", index, (70 + 5 * index, 66))
    extract = {"backbone": NET, "device": "cpu"}
    featx.extract_features(folder / "photos", folder / "f.h5", featx.ExtractConfig(**extract, layers="fc7"))
    featx.extract_features(
        folder / "photos", folder / "pooled.h5", featx.ExtractConfig(**extract, layers="conv5", pool="avg")
    )
    featx.fit_svm(folder / "f.h5", folder / "svm.safetensors", featx.FitConfig(c=1.0))
    featx.fit_softmax(folder / "f.h5", folder / "softmax.safetensors", featx.FitConfig(c=1.0))
    featx.fit_svm(folder / "pooled.h5", folder / "pooled.safetensors", featx.FitConfig(c=1.0))
    return folder


@pytest.fixture(scope="session")
def server(material: Path) -> Iterator[Served]:
    """A service with those heads, and the files as indexes."""
    names = ("svm", "softmax", "pooled")
    words = [word for name in names for word in ("--head", f"{name}={material / name}.safetensors")]
    words += ["--index", f"photos={material / 'f.h5'}", "--index", f"pooled-photos={material / 'pooled.h5'}"]
    with serving(material / "log.txt", *words) as served:
        yield served
