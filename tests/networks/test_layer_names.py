"""Layer specifications name what the literature means by them."""

from __future__ import annotations

import pytest

from featx.errors import UnknownBackbone, UnknownLayer, UsageError
from featx.networks.backbone import Backbone


@pytest.fixture(scope="module")
def alexnet() -> Backbone:
    return Backbone("alexnet")


@pytest.fixture(scope="module")
def vgg16() -> Backbone:
    return Backbone("vgg16")


def names(backbone: Backbone, spec: str) -> list[str]:
    return [layer.name for layer in backbone.names.resolve(spec)]


def test_all_of_alexnet(alexnet):
    expected = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8"]
    assert names(alexnet, "all") == expected


@pytest.mark.parametrize(("name", "convs"), [("vgg11", (1, 1, 2, 2, 2)), ("vgg13_bn", (2, 2, 2, 2, 2)),
                                             ("vgg16", (2, 2, 3, 3, 3)), ("vgg19_bn", (2, 2, 4, 4, 4))])  # fmt: skip
def test_all_of_every_vgg(name, convs):
    expected = []
    for block, count in enumerate(convs, 1):
        expected += [f"conv{block}_{i}" for i in range(1, count + 1)] + [f"pool{block}"]
    assert names(Backbone(name), "all") == [*expected, "fc6", "fc7", "fc8"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("conv1-conv3", ["conv1", "conv2", "conv3"]),
        ("conv4-fc6", ["conv4", "conv5", "pool5", "fc6"]),
        ("fc7, fc6 ,fc7", ["fc7", "fc6"]),
        ("pool*,fc8", ["pool1", "pool2", "pool5", "fc8"]),
        ("conv5:pre,prob,features.10", ["conv5:pre", "prob", "features.10"]),
    ],
)
def test_a_specification_names(alexnet, spec, expected):
    assert names(alexnet, spec) == expected


def test_a_range_in_vgg_stays_with_its_kind(vgg16):
    assert names(vgg16, "conv4_2-conv5_1") == ["conv4_2", "conv4_3", "conv5_1"]
    assert names(vgg16, "fc6-fc8") == ["fc6", "fc7", "fc8"]


@pytest.mark.parametrize("spec", ["fc9", "conv1-fc9", "", "fc7,", "conv9*", "features.99", "fc7:pre:pre"])
def test_what_is_no_layer_is_refused_with_the_nearest_and_the_command_that_lists_them(alexnet, spec):
    with pytest.raises(UnknownLayer, match=r"alexnet has no layer .* Nearest: '.*featx layers alexnet"):
        alexnet.names.resolve(spec)


def test_a_range_that_runs_backwards_is_turned_round_in_the_message(alexnet):
    with pytest.raises(UnknownLayer, match="write conv1-conv3"):
        alexnet.names.resolve("conv3-conv1")


def test_an_unknown_network_lists_the_nearest():
    with pytest.raises(UnknownBackbone, match=r"Nearest: 'alexnet'"):
        Backbone("alexnt")


@pytest.mark.parametrize(("name", "side", "own"), [("alexnet", 30, 224), ("alexnet-mini", 96, 64)])
def test_an_input_of_the_wrong_size_says_what_the_weights_were_made_for(name, side, own):
    with pytest.raises(UsageError, match=rf"{name} cannot take images of {side} x {side} pixels: .* --crop {own}"):
        _ = Backbone(name, side).geometry


@pytest.mark.parametrize(("network", "spec", "expected"), [
    ("resnet18", "layer1-layer4", ["layer1", "layer2", "layer3", "layer4"]),
    ("resnet18", "conv1-layer2", ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]),
    ("efficientnet_b0", "features.1-features.3", ["features.1", "features.2", "features.3"]),
])  # fmt: skip
def test_a_range_of_modules_goes_through_those_beside_them(network, spec, expected):
    assert names(Backbone(network), spec) == expected
