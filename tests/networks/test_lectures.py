"""The networks of the lectures: sizes and parameters against the papers', own modules against loops, use and training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_photo
from torch import nn

import featx
from featx.networks.architectures.deepface import LocallyConnected2d
from featx.networks.architectures.highway import Highway
from featx.networks.architectures.imagenet2012 import _norm
from featx.networks.architectures.lenet import TABLE_I, Grey, Rbf, ScaledTanh, Subsampling, TableConv2d
from featx.networks.backbone import Backbone
from featx.networks.build import construct

SMALL = ("convnet-mnist", "lenet5", "lenet5-rbf", "highway-10", "highway-20")
ALL = (*SMALL, "alexnet-2012", "caffenet", "zfnet", "vgg11-lrn", "vgg16-c", "deepface", "highway-50", "highway-100")


def trainable(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("convnet-mnist", 289_630),  # the lecture's number
        ("lenet5-rbf", 60_000),  # LeCun et al. 1998: "60,000 trainable free parameters"
        ("lenet5", 60_000 + 84 * 10 + 10),
        ("alexnet-2012", 60_965_224),
        ("caffenet", 60_965_224),
        ("zfnet", 62_357_608),
        ("vgg11-lrn", 132_863_336),  # Table 2: 133 million
        ("vgg16-c", 133_638_952),  # Table 2: 134 million
        ("deepface", 118_923_774),  # "more than 120 million": see docs/networks.md
        ("highway-10", 784 * 50 + 50 + 9 * 2 * (50 * 50 + 50) + 50 * 10 + 10),
    ],
)
def test_parameters_are_those_of_the_papers(name, right):
    assert trainable(construct(name)) == right


def test_lenets_layers_have_the_papers_counts():
    network = construct("lenet5-rbf", 0)
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in network.named_modules()}
    for name, right in (("C1", 156), ("S2", 12), ("C3", 1516), ("S4", 32), ("C5", 48_120)):
        assert counts[f"features.{name}"] == right
    assert counts["classifier.F6"] == 10_164
    assert sum(map(len, TABLE_I)) == 60


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("lenet5", {"C1": (6, 28, 28), "S2": (6, 14, 14), "C3": (16, 10, 10), "S4": (16, 5, 5), "C5": (120, 1, 1), "F6": (84,)}),
        ("convnet-mnist", {"conv1": (20, 24, 24), "pool1": (20, 12, 12), "fc2": (100,)}),
        ("alexnet-2012", {"conv1": (96, 55, 55), "conv2": (256, 27, 27), "conv3": (384, 13, 13), "conv4": (384, 13, 13),
                          "conv5": (256, 13, 13), "pool5": (256, 6, 6), "fc6": (4096,)}),
        ("caffenet", {"pool1": (96, 27, 27), "norm1": (96, 27, 27), "pool5": (256, 6, 6)}),
        ("zfnet", {"conv1": (96, 110, 110), "pool1": (96, 55, 55), "conv2": (256, 26, 26), "pool2": (256, 13, 13),
                   "conv3": (384, 13, 13), "conv4": (384, 13, 13), "conv5": (256, 13, 13), "pool5": (256, 6, 6)}),
        ("vgg16-c", {"conv3_3": (256, 56, 56), "conv5_3": (512, 14, 14), "fc7": (4096,)}),
        ("deepface", {"C1": (32, 142, 142), "M2": (32, 71, 71), "C3": (16, 63, 63), "L4": (16, 55, 55), "L5": (16, 25, 25),
                      "L6": (16, 21, 21), "F7": (4096,), "F8": (4030,)}),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_papers_and_of_real_tensors(name, sizes):
    backbone = Backbone(name)
    layers = {layer.name: layer for layer in backbone.names.main}
    for layer, size in sizes.items():
        assert backbone.geometry_of(layers[layer]).shape == size
    network = construct(name, 0)
    seen = {}
    for layer in sizes:
        node = layers[layer].node
        network.get_submodule(node).register_forward_hook(
            lambda _m, _i, output, layer=layer: seen.__setitem__(layer, tuple(output.shape[1:]))
        )
    with torch.no_grad():
        network(torch.zeros(1, 3, backbone.side, backbone.side))
    assert seen == sizes


def test_every_convolution_follows_the_formula():
    for name in ("lenet5", "alexnet-2012", "zfnet"):
        backbone = Backbone(name)
        network, side = construct(name), backbone.side
        values = torch.zeros(1, 3, side, side, device="meta")
        for module in network.features:
            before, values = values.shape[2], module(values)
            if isinstance(module, nn.Conv2d | nn.MaxPool2d):
                kernel, stride, padding = (one if isinstance(one, int) else one[0]
                                           for one in (module.kernel_size, module.stride, module.padding))  # fmt: skip
                assert values.shape[2] == (before - kernel + 2 * padding) // stride + 1


def test_grey_is_television_s_and_leaves_grey_alone():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    right = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    torch.testing.assert_close(Grey()(images)[:, 0], right)
    grey = torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4)
    torch.testing.assert_close(Grey()(grey), grey[:, :1])


def test_the_scaled_tanh_goes_through_one():
    assert float(ScaledTanh()(torch.ones(1, 1))) == pytest.approx(1, abs=1e-4)
    value = 0.37
    assert float(ScaledTanh()(torch.full((1, 1), value))) == pytest.approx(
        1.7159 * math.tanh(2 / 3 * value), abs=1e-6
    )


def test_subsampling_is_a_loop():
    module, maps = Subsampling(3), torch.randn(2, 3, 4, 6)
    with torch.no_grad():
        module.weight.normal_()
        module.bias.normal_()
        found = module(maps)
        for b, c, y, x in np.ndindex(2, 3, 2, 3):
            total = maps[b, c, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].sum()
            assert float(found[b, c, y, x]) == pytest.approx(
                float(total * module.weight[c] + module.bias[c]), abs=1e-5
            )


def test_the_table_s_convolution_takes_only_its_maps():
    module, maps = TableConv2d(6, TABLE_I, 5), torch.randn(2, 6, 9, 9)
    with torch.no_grad():
        found = module(maps)
        place = 0
        for output, some in enumerate(TABLE_I):
            right = module.bias[output].expand(2, 5, 5).clone()
            for one in some:
                right += F.conv2d(maps[:, one : one + 1], module.weight[place][None, None])[:, 0]
                place += 1
            torch.testing.assert_close(found[:, output], right, rtol=1e-4, atol=1e-5)


def test_the_rbf_is_the_distance():
    module, values = Rbf(7, 4), torch.randn(3, 7)
    found = module(values)
    for row in range(3):
        for k in range(4):
            right = -sum((float(values[row, j]) - float(module.codes[k, j])) ** 2 for j in range(7))
            assert float(found[row, k]) == pytest.approx(right, rel=1e-5)
    assert torch.equal(Rbf(7, 4).codes, module.codes)


def test_response_normalisation_is_a_loop_over_maps():
    maps = torch.rand(1, 9, 2, 2) * 50
    found = _norm()(maps)
    for channel in range(9):
        near = maps[:, max(0, channel - 2) : channel + 3]
        right = maps[:, channel] / (1 + 1e-4 / 5 * near.square().sum(1)) ** 0.75
        torch.testing.assert_close(found[:, channel], right)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_locally_connected_layer_is_a_loop_over_positions(stride):
    module, maps = LocallyConnected2d(3, 4, 9, 3, stride), torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        module.bias.normal_()
        for mode in (module.train(), module.eval()):
            found = mode(maps)
            side = (9 - 3) // stride + 1
            assert found.shape == (2, 4, side, side)
            for place, (y, x) in enumerate(np.ndindex(side, side)):
                patch = maps[:, :, y * stride : y * stride + 3, x * stride : x * stride + 3].reshape(2, -1)
                right = patch @ module.weight[place].t() + module.bias[:, y, x]
                torch.testing.assert_close(found[:, :, y, x], right, rtol=1e-4, atol=1e-5)


def test_a_highway_layer_begins_by_handing_on():
    module, values = Highway(6, -4.0), torch.randn(3, 6)
    with torch.no_grad():
        found = module(values)
        gate = 1 / (1 + torch.exp(-(values @ module.gate.weight.t() + module.gate.bias)))
        right = (values @ module.transform.weight.t() + module.transform.bias).clamp_min(0) * gate + values * (
            1 - gate
        )
        torch.testing.assert_close(found, right)
        module.gate.weight.zero_()
        assert float((module(values) - values).abs().max()) < 0.2
    assert [float(construct(f"highway-{depth}", 0).layers[0].gate.bias[0]) for depth in (10, 20, 50, 100)] == [
        -1,
        -2,
        -3,
        -4,
    ]


@pytest.mark.parametrize("name", SMALL)
def test_features_are_verified_and_do_not_depend_on_the_block(name, tmp_path, featx):
    for seed in range(9):
        write_photo(tmp_path / "photos" / f"{seed}.png", seed, (40, 36))
    layers = ",".join(layer.name for layer in Backbone(name).names.main[:4])
    files = []
    for batch in (1, 7):
        files.append(tmp_path / f"{batch}.h5")
        done = featx("extract", tmp_path / "photos", "-b", name, "-w", "random:0", "-l", layers, "--batch-size", batch,
                     "-o", files[-1])  # fmt: skip
        assert done.status == 0, done.err
    assert featx("verify", files[0], "--all").status == 0
    one, five = (featx_open(path) for path in files)
    for layer in one:
        np.testing.assert_array_equal(one[layer], five[layer])


def featx_open(path):
    from featx import open_features

    return open_features(path)


@pytest.mark.parametrize("name", ["lenet5", "convnet-mnist", "highway-10"])
def test_a_training_step_is_that_of_a_plain_loop(name, tmp_path):
    for seed in range(8):
        write_photo(tmp_path / "photos" / "ab"[seed % 2] / f"{seed}.png", seed, (36, 36))
    config = featx.FinetuneConfig(
        backbone=name, from_scratch=True, epochs=1, batch_size=8, val=0.0, augment="none", lr="*=0.1", momentum=0.0,
        weight_decay=0.0, schedule="constant", seed=4, device="cpu", snapshots="0,1",
    )  # fmt: skip
    featx.finetune_network(tmp_path / "photos", tmp_path / "run", config)
    from safetensors.torch import load_file

    from featx.networks.run_folder import snapshots_of

    found = snapshots_of(tmp_path / "run")
    network = construct(name, 0, classes=2).train().requires_grad_(True)
    network.load_state_dict(load_file(found[0]))
    from featx.explain.subject import load_subject

    subject = load_subject(name, weights="random:0", device="cpu")
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    inputs = subject.normalised(subject.pixels(paths))
    labels = torch.tensor([0 if path.parent.name == "a" else 1 for path in paths])
    F.cross_entropy(network(inputs), labels).backward()
    after = load_file(found[1])
    for key, parameter in network.named_parameters():
        torch.testing.assert_close(after[key], (parameter - 0.1 * parameter.grad).detach(), rtol=1e-4, atol=1e-6)


def test_every_one_has_its_own_rates_and_no_weights_to_fetch(tmp_path, featx):
    for name in ALL:
        network = Backbone(name)
        assert network.names.main
        with pytest.raises(featx_error(), match="has no published weights"):
            library().Extractor(name).load()
    write_photo(tmp_path / "p" / "a" / "0.png", 0)
    write_photo(tmp_path / "p" / "b" / "1.png", 1)
    done = featx("finetune", tmp_path / "p", "-b", "lenet5", "--from-scratch", "--lr", "C1-S4=0.01, C5-output=0.05",
                 "--epochs", "1", "--val", "0", "-o", tmp_path / "run")  # fmt: skip
    assert done.status == 0, done.err
    assert "C3" in done.err


def library():
    import featx as found

    return found


def featx_error():
    from featx.errors import UsageError

    return UsageError


@pytest.mark.parametrize("name", ["lenet5-rbf"])
def test_rbf_outputs_take_other_numbers_of_classes(name):
    network = construct(name, 0, classes=3)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rate", "least"),
    [("lenet5", 0.1, 0.97), ("lenet5-rbf", 0.002, 0.94), ("convnet-mnist", 0.05, 0.98), ("highway-10", 0.05, 0.95)],
)
def test_they_learn_the_digits_from_half_of_them(name, rate, least, tmp_path):
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = tmp_path / "digits" / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(values * 15.9)).resize((64, 64), Image.Resampling.BICUBIC).save(path)
    config = featx.FinetuneConfig(
        backbone=name, from_scratch=True, epochs=30, batch_size=32, val=0.5, augment="shift:2", lr=f"*={rate}"
    )
    found = featx.finetune_network(tmp_path / "digits", tmp_path / "run", config)
    assert found.metrics.accuracy >= least
