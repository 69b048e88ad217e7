"""Weights of MatConvNet: files written by SciPy, features against the definition of its layers."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io
from conftest import write_photo
from PIL import Image
from scipy.signal import correlate

import featx as library
from featx.errors import WeightsMismatch
from featx.networks.external.matconvnet import read_matconvnet

NET = "alexnet-2012-without-conv2-conv3-conv4-conv5-fc6-fc7-widen-conv1x0.0834"
COLOUR = (123.0, 117.0, 104.0)


@pytest.fixture(scope="module")
def arrays():
    """conv1 as (height, width, in, out), and fc8 as a convolution of the size of its input."""
    generator = np.random.default_rng(0)
    maps = 8
    return {
        "conv1": (generator.normal(0, 0.01, (11, 11, 3, maps)), generator.normal(0, 1, (1, maps))),
        "fc8": (generator.normal(0, 0.05, (6, 6, maps, 1000)), generator.normal(0, 1, (1000, 1))),
    }


def write(path, arrays, *, old=False, image=None, meta=True, change=lambda layers: layers):
    layers = []
    for name, (filters, biases) in arrays.items():
        pair = np.empty((1, 2), object)
        pair[0, 0], pair[0, 1] = filters.astype(np.float32), biases.astype(np.float32)
        fields = {"filters": pair[0, 0], "biases": pair[0, 1]} if old else {"weights": pair}
        layers += [{"name": name, "type": "conv", **fields}, {"name": f"relu_{name}", "type": "relu"}]
    cells = np.empty((1, len(layers)), object)
    for place, layer in enumerate(change(layers)):
        cells[0, place] = layer
    image = np.full((227, 227, 3), COLOUR) if image is None else image
    normalization = {"averageImage": image.astype(np.float32), "imageSize": [227.0, 227.0, 3.0]}
    known = {"meta": {"normalization": normalization}} if meta else {"normalization": normalization}
    scipy.io.savemat(path, {"layers": cells, **known}, do_compression=True)
    return path


@pytest.mark.parametrize(("old", "image"), [(False, None), (True, np.array(COLOUR).reshape(1, 1, 3))])
def test_features_are_those_of_its_definition(arrays, old, image, tmp_path, featx):
    file = write(tmp_path / "net.mat", arrays, old=old, image=image, meta=not old)
    write_photo(tmp_path / "photos" / "a.png", 5, (300, 280))
    done = featx(
        "extract", tmp_path / "photos", "-b", NET, "-w", file, "-l", "conv1:pre,fc8", "-o", tmp_path / "f.h5"
    )
    assert done.status == 0, done.err
    assert "is MatConvNet's: pixels from 0 to 255 less the mean colour 123.0, 117.0, 104.0" in done.err
    assert featx("verify", tmp_path / "f.h5", "--rows", "1").status == 0
    features = library.open_features(tmp_path / "f.h5")
    with Image.open(tmp_path / "photos" / "a.png") as opened:
        resized = opened.convert("RGB").resize((274, 256), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized)[14:241, 24:251].astype(np.float64) - COLOUR  # (H, W, 3), as MATLAB has it
    filters, biases = arrays["conv1"]
    for channel in range(0, 8, 3):
        whole = sum(correlate(pixels[:, :, c], filters[:, :, c, channel], mode="valid") for c in range(3))
        expected = whole[::4, ::4] + biases.ravel()[channel]
        found = features["conv1:pre"][0, channel]
        assert found.shape == expected.shape == (55, 55)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    # fc8 over what the network gives it: the order of its values is the point
    library.extract_features(
        tmp_path / "photos",
        tmp_path / "p.h5",
        library.ExtractConfig(backbone=NET, layers="pool5", weights=str(file), device="cpu"),
    )
    maps = library.open_features(tmp_path / "p.h5")["pool5"][0].astype(np.float64)
    filters, biases = arrays["fc8"]
    expected = np.einsum("chw,hwco->o", maps, filters) + biases.ravel()
    assert np.abs(features["fc8"][0] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_sizes_of_one_at_the_end_are_there_again(tmp_path):
    file = write(tmp_path / "n.mat", {"conv1": (np.ones((3, 3, 2, 1)), np.ones((1, 1)))})
    assert [tuple(one.shape) for one in read_matconvnet(file)["conv1"]] == [(1, 2, 3, 3), (1,)]


def test_what_is_no_network_of_it_is_refused(arrays, tmp_path, featx):
    write_photo(tmp_path / "photos" / "a.png", 5)
    scipy.io.savemat(tmp_path / "other.mat", {"x": np.zeros(3)})
    (tmp_path / "text.mat").write_text("no matrix at all, but long enough to be read as a header of some kind" * 9)
    write(tmp_path / "few.mat", {"conv1": arrays["conv1"]})
    write(tmp_path / "dag.mat", arrays, change=lambda layers: [np.zeros(3) for _ in layers])
    write(tmp_path / "wrong.mat", {**arrays, "conv1": (np.ones((11, 11, 3, 9)), np.ones((1, 9)))})
    for name, said in (
        ("other", "averageImage"),
        ("text", "cannot be read as a MATLAB 5 file"),
        ("few", "has no layer fc8"),
        ("dag", "not those of a SimpleNN"),
        ("wrong", "conv1 is (9, 3, 11, 11), the network needs (8, 3, 11, 11)"),
    ):
        done = featx("extract", tmp_path / "photos", "-b", NET, "-w", tmp_path / f"{name}.mat", "-l", "fc8",
                     "-o", tmp_path / "f.h5")  # fmt: skip
        assert done.status not in (0, 1), name
        assert said in done.err.splitlines()[-1], done.err
    with pytest.raises(WeightsMismatch, match="holds no `layers`"):
        read_matconvnet(tmp_path / "other.mat")
