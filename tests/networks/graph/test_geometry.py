"""Receptive fields against gradients, shapes against real ones, sizes and costs against torchvision's own records."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn

from featx.networks.backbone import Backbone
from featx.networks.build import construct
from featx.networks.graph.capture import capture_layers, trace_nodes
from featx.networks.registry import architecture, backbone_names

FIELDS = {
    "alexnet": (224, ["conv1", "pool1", "conv2", "conv3", "conv5", "pool5"]),
    "vgg16": (224, ["conv1_2", "pool2", "conv3_3", "conv4_2"]),
    "vgg11_bn": (160, ["conv2_1", "conv4_2", "pool4"]),
    "resnet18": (224, ["maxpool", "layer1.0.conv2", "layer2.0.add", "layer3.1.relu_1"]),
    "googlenet": (224, ["conv3.conv", "inception3a.cat", "inception4a.branch3.1.conv"]),
    "inception_v3": (299, ["maxpool1", "Mixed_5b.cat", "Mixed_6a.cat", "Mixed_6b.branch7x7_2.conv"]),
    "densenet121": (128, ["features.pool0", "features.denseblock1.denselayer3.conv2"]),
    "mnasnet0_5": (128, ["layers.8.1.layers.3", "layers.9.0.layers.6"]),
    "squeezenet1_1": (128, ["features.3.cat", "features.7.cat"]),
    "shufflenet_v2_x0_5": (128, ["stage2.0.cat", "stage2.1.branch2.3"]),
    "convnext_tiny": (128, ["features.0", "features.1.0.block.0", "features.1.1.add"]),
}


def all_ways_open(name: str) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """The network with every weight positive and every maximum a mean: a pixel counts if and only if it is seen."""
    network = construct(name, seed=0)
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            module.weight.fill_(1 / module.weight[0].numel())
            if module.bias is not None:
                module.bias.zero_()
        if isinstance(module, nn.MaxPool2d):
            mean = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
            network.set_submodule(path, mean)
    traced, nodes = trace_nodes(network.double())
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target is F.max_pool2d:
            node.target = F.avg_pool2d
            node.kwargs = {
                key: node.kwargs[key] for key in ("kernel_size", "stride", "padding") if key in node.kwargs
            }
        if isinstance(node.target, str) and node.op == "call_module":
            module = traced.get_submodule(node.target)
            if isinstance(module, nn.LayerNorm) or "LayerNorm" in type(module).__name__:
                traced.set_submodule(node.target, nn.Identity())
        if node.op == "call_function" and node.target is F.layer_norm:  # ConvNeXt's norm between two permutations
            node.target, node.args, node.kwargs = torch.clone, node.args[:1], {}
    traced.recompile()
    return traced, nodes


def seen_pixels(traced: fx.GraphModule, nodes: dict[str, fx.Node], node: str, side: int) -> torch.Tensor:
    """(side, side) bool: the pixels on which the unit in the middle of a map depends."""
    pixels = torch.full((1, 3, side, side), 1.0, dtype=torch.float64, requires_grad=True)
    value = capture_layers(traced, nodes, {"it": node})(pixels)["it"]
    value[0, :, value.shape[2] // 2, value.shape[3] // 2].sum().backward()
    return pixels.grad[0].abs().sum(0) > 0


def extent(mask: torch.Tensor) -> tuple[int, int]:
    places = mask.nonzero().flatten()
    return int(places[0]), int(places[-1]) + 1


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "vgg16" else ()) for name in FIELDS]
)
def test_receptive_fields_are_the_pixels_with_a_gradient(name):
    side, layers = FIELDS[name]
    backbone = Backbone(name, side)
    traced, nodes = all_ways_open(name)
    for layer in backbone.names.resolve(",".join(layers)):
        geometry = backbone.geometry[backbone.nodes[layer.node]]
        seen = seen_pixels(traced, nodes, layer.node, side)
        for axis, span in ((1, geometry.field.vertical), (0, geometry.field.horizontal)):
            middle = geometry.shape[1 if axis == 1 else 2] // 2
            start = span.start + middle * span.stride
            expected = max(0, start), min(side, start + span.size)
            assert extent(seen.any(axis)) == expected, f"{name} {layer.name}"


def test_after_squeeze_and_excitation_every_pixel_is_seen():
    traced, nodes = all_ways_open("efficientnet_b0")
    info = Backbone("efficientnet_b0", 64)
    row = info.describe(info.names.resolve("features.1.0.block.1"))[0]
    assert row.sees == "whole"
    assert seen_pixels(traced, nodes, "features.1.0.block.1", 64).all()


@pytest.mark.parametrize("name", ["alexnet", "vgg16_bn", "googlenet", "inception_v3", "resnet18", "mnasnet0_5"])
def test_shapes_are_the_real_ones(name):
    backbone = Backbone(name)
    network = construct(name, seed=0)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in network.named_modules():
        module.register_forward_hook(
            lambda _m, _i, output, path=path: shapes.__setitem__(path, tuple(getattr(output, "shape", ()))[1:])
        )
    with torch.no_grad():
        network(torch.rand(1, 3, backbone.side, backbone.side))
    rows = [row for row in backbone.describe(backbone.names.main) if row.node in shapes]
    assert len(rows) > 10
    assert {row.node: row.shape for row in rows} == {row.node: shapes[row.node] for row in rows}


# Of every family one network; the others compute the same in other sizes.
FAMILIES = ("alexnet", "vgg16", "vgg11_bn", "googlenet", "inception_v3", "resnet18", "resnext50_32x4d", "densenet121",
            "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_y_400mf",
            "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t")  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow)
        for name in backbone_names()
        if architecture(name).weights.files()
    ],
)
def test_parameters_and_cost_agree_with_torchvisions_records(name):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    backbone = Backbone(name)
    rows = backbone.describe(backbone.names.main)
    auxiliary = {"googlenet": 6_379_984, "inception_v3": 3_326_696}.get(name, 0)  # heads unused in eval mode
    assert sum(row.parameters for row in rows) == weights.meta["num_params"] - (
        0 if name == "googlenet" else auxiliary
    )
    # torchvision rounds to three digits after the point and leaves a few small products out.
    assert rows[-1].multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], rel=0.03)


def test_alexnet_is_the_network_of_the_books():
    rows = {row.name: row for row in Backbone("alexnet").describe(Backbone("alexnet").names.main)}
    assert [rows[n].receptive_field[0] for n in ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")] == [
        11, 51, 99, 131, 163, 195,
    ]  # fmt: skip
    assert rows["fc6"].parameters == 9216 * 4096 + 4096
