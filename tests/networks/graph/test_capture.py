"""A layer is what plain torchvision computes there, whatever else is asked for and in whatever batch.

The reference is torchvision's own module, unmodified, with a hook on the layer that clones at once.
"""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, fx, nn

from featx.extraction.engine import Engine
from featx.extraction.recipe import Recipe
from featx.networks.architectures.architecture import WeightsSource
from featx.networks.build import construct
from featx.networks.graph.capture import capture_layers, forbid_in_place, trace_nodes
from featx.networks.graph.tracing import trace_network
from featx.networks.layer_names import Layer
from featx.networks.load import LoadedNetwork
from featx.networks.registry import architecture, backbone_names

# Written by hand from torchvision's source: literature name -> module whose output it is.
ALEXNET = {
    "conv1": "features.1", "conv1:pre": "features.0", "pool1": "features.2",
    "conv2": "features.4", "conv2:pre": "features.3", "pool2": "features.5",
    "conv3": "features.7", "conv3:pre": "features.6", "conv4": "features.9", "conv4:pre": "features.8",
    "conv5": "features.11", "conv5:pre": "features.10", "pool5": "features.12",
    "fc6": "classifier.2", "fc6:pre": "classifier.1", "fc7": "classifier.5", "fc7:pre": "classifier.4",
    "fc8": "classifier.6",
}  # fmt: skip
VGG16_CONVS = [(1, 2), (2, 2), (3, 3), (4, 3), (5, 3)]


def vgg16(batch_norm: bool) -> dict[str, str]:
    layers, index = {}, 0
    for block, convs in VGG16_CONVS:
        for number in range(1, convs + 1):
            before_relu = index + 1 if batch_norm else index
            layers[f"conv{block}_{number}:pre"] = f"features.{before_relu}"
            layers[f"conv{block}_{number}"] = f"features.{before_relu + 1}"
            index = before_relu + 2
        layers[f"pool{block}"] = f"features.{index}"
        index += 1
    heads = {"fc6": 0, "fc7": 3}
    for name, position in heads.items():
        layers[f"{name}:pre"] = f"classifier.{position}"
        layers[name] = f"classifier.{position + 1}"
    return layers | {"fc8": "classifier.6"}


NETWORKS = {
    "alexnet": ALEXNET,
    "vgg16": vgg16(batch_norm=False),
    "vgg16_bn": vgg16(batch_norm=True),
    "googlenet": {"inception4c.branch3": "inception4c.branch3", "inception3a": "inception3a"},
    "resnet18": {"layer2.0.conv1": "layer2.0.conv1", "layer2.0.bn1": "layer2.0.bn1", "layer3": "layer3"},
    "densenet121": {"features.denseblock2": "features.denseblock2", "features.norm5": "features.norm5"},
}
LARGE = ("vgg16", "vgg16_bn", "densenet121")


def images(side: int, count: int = 2) -> list[Image.Image]:
    generator = np.random.default_rng(7)
    return [
        Image.fromarray(generator.integers(0, 256, (side + 40, side + 70 + 9 * i, 3), np.uint8)) for i in range(count)
    ]


def by_hooks(network: nn.Module, modules: dict[str, str], image: Tensor) -> dict[str, Tensor]:
    """What each module gave the moment it had computed it."""
    caught: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(module).register_forward_hook(
            lambda _m, _i, output, name=name: caught.__setitem__(name, output.detach().clone())
        )
        for name, module in modules.items()
    ]
    with torch.no_grad():
        network(image[None])
    for handle in handles:
        handle.remove()
    return {name: value[0] for name, value in caught.items()}


def extractor(name: str, layers: str, batch_size: int, loaded: LoadedNetwork, monkeypatch) -> Engine:
    """featx's extractor on a copy of a network that is there already."""
    monkeypatch.setattr(
        "featx.extraction.engine.load_network",
        lambda *_: LoadedNetwork(copy.deepcopy(loaded.network), loaded.source, ""),
    )
    recipe = Recipe.plan(
        backbone=name,
        layers=layers,
        weights="random:3",
        pool="none",
        device="cpu",
        batch_size=batch_size,
    )
    return Engine(recipe)


def features_of(extractor: Engine, images: list[Image.Image]) -> list[dict[str, np.ndarray]]:
    """The features of each image, in padded blocks as featx makes them."""
    recipe = extractor.recipe
    pixels = np.stack([recipe.preprocess.pixels(image) for image in images])
    rows = []
    for start in range(0, len(images), recipe.batch_size):
        block = np.zeros((recipe.batch_size, *pixels.shape[1:]), np.uint8)
        part = pixels[start : start + recipe.batch_size]
        block[: len(part)] = part
        found = extractor(block)
        rows += [{name: values[i] for name, values in found.items()} for i in range(len(part))]
    return rows


def same(ours: np.ndarray, reference: Tensor, what: str) -> None:
    """Equal within float32 rounding: sums of up to 25,088 products in another order."""
    expected = reference.numpy()
    assert ours.shape == expected.shape, what
    scale = np.abs(expected).max()
    assert scale > 0, f"{what} is all zero, which proves nothing"
    assert np.abs(ours - expected).max() <= 5e-6 * scale, what


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LARGE])
def test_every_named_layer_is_what_torchvision_computes(name, monkeypatch):
    compare_every_layer(name, (1, 4), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_named_layer_of_large_batches_is_what_torchvision_computes(name, monkeypatch):
    compare_every_layer(name, (1, 32), monkeypatch)


def compare_every_layer(name: str, batches: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers together, and each alone."""
    modules = NETWORKS[name]
    network = construct(name, seed=3)
    loaded = LoadedNetwork(network, WeightsSource("random:3", "random:3", seed=3), "")
    reference_network = copy.deepcopy(network)
    pictures = images(224)
    together = {b: extractor(name, ",".join(modules), b, loaded, monkeypatch) for b in batches}
    recipe = together[1].recipe
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms(crop_size=recipe.preprocess.crop, resize_size=recipe.preprocess.resize)
    expected = [by_hooks(reference_network, modules, transforms(picture)) for picture in pictures]
    assert set(expected[0]) == set(modules)
    for batch_size, whole in together.items():
        found = features_of(whole, pictures)
        for layer in modules:
            for row in range(len(pictures)):
                same(found[row][layer], expected[row][layer], f"{name} {layer}, with all, batch {batch_size}")
    together_rows = {b: features_of(together[b], pictures) for b in together}
    for layer in modules:
        for batch_size in together:
            one = extractor(name, layer, batch_size, loaded, monkeypatch)
            for row, found in enumerate(features_of(one, pictures)):
                same(found[layer], expected[row][layer], f"{name} {layer}, alone, batch {batch_size}")
                assert found[layer].tobytes() == together_rows[batch_size][row][layer].tobytes(), layer


def test_fc6_before_its_relu_stays_negative_when_fc7_is_asked_for_too(monkeypatch):
    network = construct("alexnet", seed=3)
    loaded = LoadedNetwork(network, WeightsSource("random:3", "random:3", seed=3), "")
    rows = features_of(extractor("alexnet", "fc6:pre,fc6,fc7", 1, loaded, monkeypatch), images(224))
    assert rows[0]["fc6:pre"].min() < 0
    assert rows[0]["fc6"].min() == 0
    np.testing.assert_array_equal(rows[0]["fc6"], np.maximum(rows[0]["fc6:pre"], 0))


def test_prob_is_the_softmax_of_the_networks_output(monkeypatch):
    network = construct("squeezenet1_1", seed=3)
    loaded = LoadedNetwork(network, WeightsSource("random:3", "random:3", seed=3), "")
    pictures = images(224)
    whole = extractor("squeezenet1_1", "prob", 4, loaded, monkeypatch)
    transforms = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    with torch.no_grad():
        expected = torch.softmax(construct("squeezenet1_1", seed=3)(transforms(pictures[1])[None]), 1)[0]
    same(features_of(whole, pictures)[1]["prob"], expected, "prob")


def test_the_bytes_of_a_row_do_not_depend_on_its_place_or_its_neighbours(monkeypatch):
    network = construct("alexnet", seed=3)
    loaded = LoadedNetwork(network, WeightsSource("random:3", "random:3", seed=3), "")
    whole = extractor("alexnet", "conv1,conv5,fc7", 8, loaded, monkeypatch)
    pictures = images(224, 8)
    forward, backward = features_of(whole, pictures), features_of(whole, pictures[::-1])[::-1]
    few = features_of(whole, pictures[:3])
    for row in range(8):
        for layer in ("conv1", "conv5", "fc7"):
            assert forward[row][layer].tobytes() == backward[row][layer].tobytes()
            assert row >= 3 or few[row][layer].tobytes() == forward[row][layer].tobytes()


def test_nothing_behind_the_deepest_layer_is_computed():
    traced, nodes = trace_nodes(construct("vgg16"))
    captured = capture_layers(traced, nodes, {"a": "features.4", "b": "features.11"})
    assert [n.target for n in captured.graph.nodes if n.op == "call_module"] == [f"features.{i}" for i in range(12)]
    assert not any(name.startswith("classifier") for name, _ in captured.named_parameters())


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5",
                                  "squeezenet1_1", "efficientnet_b0", "regnet_y_400mf", "densenet121"])  # fmt: skip
def test_no_node_of_any_network_is_changed_after_it_was_computed(name):
    """The version counter of a tensor counts in-place operations, on itself and on its views."""
    traced, nodes = trace_nodes(construct(name, seed=0))
    versions: dict[fx.Node, tuple[Tensor, int]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            value = super().run_node(node)
            if isinstance(value, Tensor):
                versions.setdefault(node, (value, value._version))
            return value

    with torch.no_grad():
        Watch(traced, garbage_collect_values=False).run(torch.rand(1, 3, 96, 96))
    watched = {name: versions[node] for name, node in nodes.items() if node in versions}
    assert len(watched) > 20
    changed = [name for name, (tensor, version) in watched.items() if tensor._version != version]
    assert changed == []


def test_every_kind_of_in_place_operation_is_rewritten():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            x += 1
            x = torch.relu_(x)
            x = x.mul_(3)
            x = nn.functional.relu(x, True)
            x = nn.functional.dropout(x, 0.5, False, inplace=True)
            return self.relu(x)

    graph = fx.symbolic_trace(InPlace())
    forbid_in_place(graph)
    source = graph.code
    assert "+=" not in source
    assert "relu_(" not in source
    assert "mul_(" not in source
    assert "inplace = True" not in source
    assert not graph.relu.inplace
    x = torch.randn(5)
    assert torch.equal(graph(x), InPlace()(x.clone()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in backbone_names() if architecture(name).weights.files()])
def test_every_classifier_can_be_traced_and_gives_what_the_module_gives(name):
    network = construct(name, seed=0)
    side = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    pixels = torch.rand(1, 3, side, side)
    with torch.no_grad():
        expected = network(pixels)
        traced, nodes = trace_nodes(network)
        last = list(nodes)[-1]
        found = capture_layers(traced, nodes, {"last": last})(pixels)["last"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_layers_of_other_networks_are_named_as_torchvision_names_nodes():
    recipe = Recipe.plan(backbone="resnet18", layers="layer1.0.relu_1,layer4", weights="random:0",
                         pool="none", device="cpu")  # fmt: skip
    assert recipe.layers == (
        Layer("layer1.0.relu_1", "layer1.0.relu_1", "after"),
        Layer("layer4", "layer4.1.relu_1", "after"),
    )


def test_real_photos_give_the_same_features_as_torchvision(real_photos: Path, monkeypatch):
    network = construct("alexnet", seed=3)
    loaded = LoadedNetwork(network, WeightsSource("random:3", "random:3", seed=3), "")
    paths = sorted(real_photos.iterdir())[:40:5]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    found = features_of(extractor("alexnet", "conv5,fc7", 32, loaded, monkeypatch), pictures)
    transforms = torchvision.models.AlexNet_Weights.DEFAULT.transforms()
    reference = copy.deepcopy(network)
    for row, picture in enumerate(pictures):
        expected = by_hooks(reference, {"conv5": "features.11", "fc7": "classifier.5"}, transforms(picture))
        same(found[row]["conv5"], expected["conv5"], paths[row].name)
        same(found[row]["fc7"], expected["fc7"], paths[row].name)


def test_networks_compute_and_are_traced_in_several_threads_at_once():
    """A tracer of torch.fx is told of every module of the process that is called meanwhile."""
    from concurrent.futures import ThreadPoolExecutor

    mine = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    networks = [construct("resnet18", seed).eval() for seed in range(2)]
    expected, values = [str(trace_network(network)[0].graph) for network in networks], torch.ones(3, 4)
    done = threading.Event()

    def compute():
        with torch.inference_mode():
            first, count = mine(values), 0
            while not done.is_set() or not count:
                torch.testing.assert_close(mine(values), first, rtol=0, atol=0)
                count += 1

    with ThreadPoolExecutor(4) as pool:
        computing = [pool.submit(compute) for _ in range(2)]
        tracing = [pool.submit(lambda n=n: [str(trace_network(n)[0].graph) for _ in range(4)]) for n in networks]
        try:
            found = [one.result() for one in tracing]
        finally:
            done.set()
        for one in computing:
            one.result()
    assert found == [[text] * 4 for text in expected]
    assert torch.nn.Module.__call__.__module__ == "torch.nn.modules.module"  # nothing is left of them
