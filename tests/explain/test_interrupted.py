"""Commands that take long and are killed go on where they were, and end with what an undisturbed one makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import write_photo

import featx as library
from featx.artifacts.shown_folder import PARTS

COMMANDS = {
    "saliency": ("--method", "smoothgrad,integrated", "--samples", "30"),
    "occlusion": ("--square", "8", "--stride", "3"),
    "invariance": ("-l", "conv1,fc7"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_one_goes_on(name, tmp_path):
    photos = [tmp_path / f"{seed:02d}.png" for seed in range(5)]
    for seed, path in enumerate(photos):
        write_photo(path, seed, (70, 64))
    words = [
        sys.executable,
        "-m",
        "featx",
        "show",
        name,
        *map(str, photos),
        "-b",
        "alexnet-mini",
        *COMMANDS[name],
        "-o",
    ]
    environment = {**os.environ, "FEATX_DEVICE": "cpu"}
    subprocess.run([*words, str(tmp_path / "whole")], check=True, capture_output=True, env=environment)
    parts = tmp_path / "out" / PARTS
    running = subprocess.Popen([*words, str(tmp_path / "out")], env=environment, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    while not list(parts.glob("*.npz")):
        time.sleep(0.01)
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert kept
    again = subprocess.Popen([*words, str(tmp_path / "out")], env=environment, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)  # fmt: skip
    while again.poll() is None:
        for path, before in kept.items():
            if path.exists():
                assert path.stat().st_mtime_ns == before
        time.sleep(0.05)
    assert again.returncode == 0
    assert not parts.exists()
    whole, found = (dict(np.load(tmp_path / folder / f"{name}.npz")) for folder in ("whole", "out"))
    assert whole.keys() == found.keys()
    for key, values in whole.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[key], values, rtol=1e-4, atol=1e-6)
        else:
            assert (found[key] == values).all()


def test_umap_where_it_is_installed(tmp_path):
    pytest.importorskip("umap")
    for seed in range(30):
        write_photo(tmp_path / "photos" / f"{seed:02d}.png", seed, (64, 64))
    library.extract_features(
        tmp_path / "photos", tmp_path / "f.h5", library.ExtractConfig(backbone="alexnet-mini", device="cpu")
    )
    library.show_map(tmp_path / "f.h5", tmp_path / "map", library.MapConfig(method="umap", neighbors=5))
    with np.load(tmp_path / "map" / "map.npz") as numbers:
        assert numbers["points"].shape == (30, 2)
