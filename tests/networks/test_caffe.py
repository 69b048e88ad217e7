"""Weights from Caffe: files written here by hand, features against Caffe's own way of computing them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_photo
from PIL import Image

import featx as library
from featx.errors import WeightsMismatch
from featx.networks.external.caffe import read_caffemodel

# Small, with two groups in conv2 and conv5.
NET = "alexnet-2012-without-conv3-conv4-fc6-fc7-widen-conv1x0.25-conv2x0.125-conv5x0.0625"
SHAPES = {"conv1": (24, 3, 11, 11), "conv2": (32, 12, 5, 5), "conv5": (16, 16, 3, 3), "fc8": (1000, 16 * 36)}


def varint(value):
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field, value):
    return varint(field << 3) + varint(value)


def blob(values, *, old=False, packed=True):
    data = values.astype("<f4")
    if old:  # four sizes, as before 2014
        sizes = (1,) * (4 - data.ndim) + data.shape
        head = b"".join(number(field, size) for field, size in zip((1, 2, 3, 4), sizes, strict=True))
    else:
        head = message(7, message(1, b"".join(map(varint, data.shape))))
    if packed:
        return head + message(5, data.tobytes())
    return head + b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in data.ravel())


def model(layers, *, old=False, packed=True):
    found = message(1, b"a network")
    for name, blobs in layers.items():
        fields = (4, 6) if old else (1, 7)
        content = message(fields[0], name.encode()) + b"".join(
            message(fields[1], blob(one, old=old, packed=packed)) for one in blobs
        )
        found += message(2 if old else 100, content + number(5, 4) if old else message(2, b"Convolution") + content)
        found += message(2 if old else 100, message(4 if old else 1, b"relu"))  # without weights
    return found


@pytest.fixture(scope="module")
def layers():
    generator = np.random.default_rng(0)
    return {
        name: (
            generator.normal(0, 0.05, shape).astype(np.float32),
            generator.normal(0, 1, shape[0]).astype(np.float32),
        )
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_both_forms_of_a_file_are_read(layers, old, packed, tmp_path):
    few = {name: layers[name] for name in ("conv1", "conv2")}
    (tmp_path / "n.caffemodel").write_bytes(model(few, old=old, packed=packed))
    found = read_caffemodel(tmp_path / "n.caffemodel")
    assert list(found) == list(few)
    for name, blobs in few.items():
        for one, right in zip(found[name], blobs, strict=True):
            np.testing.assert_array_equal(one.numpy().reshape(right.shape), right)


def test_features_are_what_caffe_computes(layers, tmp_path, featx):
    file = tmp_path / "n.caffemodel"
    file.write_bytes(model(layers))
    write_photo(tmp_path / "photos" / "a.png", 5, (300, 280))
    done = featx(
        "extract", tmp_path / "photos", "-b", NET, "-w", file, "-l", "norm1,pool5,fc8", "-o", tmp_path / "f.h5"
    )
    assert done.status == 0, done.err
    assert "is Caffe's" in done.err
    assert featx("verify", tmp_path / "f.h5", "--rows", "1").status == 0
    features = library.open_features(tmp_path / "f.h5")
    with Image.open(tmp_path / "photos" / "a.png") as opened:
        image = opened.convert("RGB").resize((274, 256), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)[14:241, 24:251].astype(np.float32)  # 227 of 256 x 274, rounded to even
    bgr = pixels[:, :, ::-1] - np.array([104.00698793, 116.66876762, 122.67891434], np.float32)
    values = torch.from_numpy(bgr.copy()).permute(2, 0, 1)[None]

    def convolve(values, name, **options):
        weight, bias = map(torch.from_numpy, layers[name])
        return F.relu(F.conv2d(values, weight, bias, **options))

    def normalise(values):
        squares = F.pad(values.square(), (0, 0, 0, 0, 2, 2))
        total = sum(squares[:, place : place + values.shape[1]] for place in range(5))
        return values / (1 + 1e-4 / 5 * total) ** 0.75

    norm1 = normalise(convolve(values, "conv1", stride=4))
    pool1 = F.max_pool2d(norm1, 3, 2)
    pool2 = F.max_pool2d(normalise(convolve(pool1, "conv2", padding=2, groups=2)), 3, 2)
    pool5 = F.max_pool2d(convolve(pool2, "conv5", padding=1, groups=2), 3, 2)
    weight, bias = map(torch.from_numpy, layers["fc8"])
    right = {"norm1": norm1, "pool5": pool5, "fc8": pool5.flatten(1) @ weight.t() + bias}
    for name, expected in right.items():
        found = features[name][0]
        assert np.abs(found - expected[0].numpy()).max() <= 2e-4 * np.abs(expected.numpy()).max(), name


def test_vgg_takes_the_preprocessing_of_its_authors(tmp_path):
    from featx.extraction.recipe import Recipe

    file = tmp_path / "VGG_ILSVRC_16_layers.caffemodel"
    file.write_bytes(b"")
    values = Recipe.plan(backbone="vgg16", weights=str(file), device="cpu").preprocess.values()
    assert [255 * value for value in values["mean"]] == pytest.approx([123.68, 116.779, 103.939])
    assert [255 * value for value in values["std"]] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no layer with weights"),
        (b"\x89PNG not a model", "cannot be read as a .caffemodel"),
        (model({"conv1": (np.zeros((2, 3)),)})[:-15], "cut off"),
        (
            message(100, message(1, b"x") + message(7, message(7, message(1, varint(9))) + message(5, b"\0" * 8))),
            "holds 2 values",
        ),
        (b"\xff" * 40, "without an end"),
    ],
)
def test_damaged_files_are_refused(content, reason, tmp_path):
    (tmp_path / "n.caffemodel").write_bytes(content)
    with pytest.raises(WeightsMismatch, match=reason):
        read_caffemodel(tmp_path / "n.caffemodel")


def test_weights_of_another_network_name_the_first_layer(layers, tmp_path, featx):
    write_photo(tmp_path / "photos" / "a.png", 5, (300, 280))
    file = tmp_path / "n.caffemodel"
    for changed, reason in (
        (
            {name: blobs for name, blobs in layers.items() if name != "conv2"},
            "has no layer conv2; it has conv1, conv5, fc8",
        ),
        (
            {**layers, "conv5": (np.zeros((16, 8, 3, 3)), layers["conv5"][1])},
            "conv5 is (16, 8, 3, 3), the network needs (16, 16, 3, 3)",
        ),
    ):
        file.write_bytes(model(changed))
        done = featx("extract", tmp_path / "photos", "-b", NET, "-w", file, "-l", "pool5", "-o", tmp_path / "f.h5")
        assert (done.status, reason in done.err) == (4, True), done.err
    done = featx("extract", tmp_path / "photos", "-b", "resnet18", "-w", file, "-o", tmp_path / "f.h5")
    assert (done.status, "are for AlexNet, VGG" in done.err) == (4, True), done.err
