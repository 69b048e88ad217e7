"""Fixtures: small images, each in its own colours, and the real ones where they are at hand."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from featx.cli import main
from featx.store.checksums import STATIC_FIELDS, static_checksum
from featx.store.schema import FilePlan, LayerSpec, essence
from featx.store.writer import FeatureWriter

# The same examples in every run, so that a failure belongs to the change under test. New ones are looked for by
# `make test-slow`.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("exploring", print_blob=True)
settings.load_profile("repeatable")

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """Leave what has been imported out of every collection from now on: each extraction ends with one."""
    gc.collect()
    gc.freeze()


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


@dataclass(frozen=True)
class Outcome:
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def featx(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process as the shell would: featx("layers", "alexnet").out"""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), printed.out, printed.err)

    return run


def seal(file: h5py.File, made: Any) -> None:
    """Let fingerprint and checksum of an open features file agree with a provenance, where that is enough of one."""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        fingerprint = hashlib.sha256(json.dumps(essence(made), sort_keys=True).encode()).hexdigest()
        file.attrs["fingerprint"] = np.bytes_(fingerprint)
        attributes = {
            name: {key: layer.attrs[key].decode() for key in ("node", "relu", "pooling")}
            | {"shape": list(layer.shape[1:])}
            for name, layer in file["features"].items()
        }
        fields = {name: file[name][()] for name in STATIC_FIELDS}
        file["checksums/static"][0] = static_checksum(fields, made, attributes)


def write_features(
    path: Path,
    values: np.ndarray,
    labels: list[int] | np.ndarray,
    classes: tuple[str, ...],
    *,
    split_of: list[int] | None = None,
    splits: tuple[str, ...] = (),
    failed: tuple[int, ...] = (),
    layer: str = "fc7",
    kind: str = "folder",
    sha256: np.ndarray | None = None,
    paths: list[str] | None = None,
) -> Path:
    """A finished features file with given rows, as if AlexNet had made them.

    Args:
        kind: of the source.
        sha256: (N, 32) of the images; zeros by default, which are copies of none.
    """
    count = len(values)
    names = [f"{i:06d}.jpg".encode() for i in range(count)] if paths is None else [one.encode() for one in paths]
    spec = LayerSpec(layer, "classifier.5", "after", "none", values.shape[1:], "float32")
    made = {
        "backbone": "alexnet",
        "weights": {"name": "random:0", "spec": "random:0", "url": None, "sha256": "0" * 64},
        "preprocess": {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1],
                       "squash": False},
        "exif": False, "pooling": "none", "precision": "fp32", "decode": "cpu", "dtype": "float32", "batch_size": 32,
        "layers": {layer: {"node": "classifier.5", "relu": "after"}}, "command": "featx extract SOURCE",
        "images": "x", "request": {}, "source": {"path": "/nowhere", "kind": kind}, "hardware": "CPU",
        "versions": {"decoder": "Pillow", "torch": "2"},
    }  # fmt: skip
    plan = FilePlan(names, list(labels), classes, split_of or [-1] * count, splits, [spec], made)
    status = np.ones(count, np.uint8)
    status[list(failed)] = 6
    rows = values.astype(np.float32).copy()
    rows[list(failed)] = np.nan
    with FeatureWriter.open(path, plan) as writer:
        writer.write_block(
            0, {layer: rows}, status=status, sha256=np.zeros((count, 32), np.uint8) if sha256 is None else sha256,
            orientation=np.ones(count, np.uint8), decoder=np.zeros(count, np.uint8), reasons=dict.fromkeys(failed, "broken"),
        )  # fmt: skip
        writer.finish()
    return path


def clusters(per_class: int = 40, classes: int = 3, width: int = 12, seed: int = 0, spread: float = 1.5):
    """Non-negative rows (N, D) around one centre per class, and their labels."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), per_class)
    values = np.maximum(centres[labels] + spread * generator.normal(size=(len(labels), width)), 0)
    return values.astype(np.float32), labels
