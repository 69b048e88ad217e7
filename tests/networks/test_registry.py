"""Every network is one entry of the table, and those defined here are torchvision's to the bit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from featx.extraction.recipe import default_layer
from featx.networks.architectures import alexnet, vgg
from featx.networks.backbone import Backbone
from featx.networks.build import construct, final_layer
from featx.networks.graph.capture import capture_layers, trace_nodes
from featx.networks.layer_names import LOGITS, PENULTIMATE, PROB
from featx.networks.registry import architecture, backbone_names, default_preprocessing
from featx.networks.weights import weights_of

DEFINED_HERE = [entry.name for entry in (*alexnet.ENTRIES, *vgg.ENTRIES) if entry.weights.files()]
# One of every family, for every run; the others are slow.
SAMPLE = (
    "alexnet", "vgg11_bn", "alexnet-mini", "vit_b_32", "swin_t", "efficientnet_b0", "regnet_y_400mf", "inception_v3",
    "googlenet", "resnet18", "squeezenet1_1", "mobilenet_v3_small", "convnext_tiny", "densenet121", "mnasnet0_5",
    "shufflenet_v2_x0_5",
)  # fmt: skip


def torchvisions(name: str, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_model(name, weights=None).eval()


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg13_bn", "vgg16", "vgg19_bn"])
def test_alexnet_and_vgg_are_torchvisions(name):
    theirs, ours = torchvisions(name, 3), construct(name, seed=3)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())
    assert [(n, str(m)) for n, m in ours.named_modules() if n and not list(m.children())] == [
        (n, str(m)) for n, m in theirs.named_modules() if n and not list(m.children())
    ]
    pixels = torch.rand(1, 3, 80, 96)
    with torch.inference_mode():
        assert torch.equal(ours(pixels), theirs(pixels))


@pytest.mark.parametrize("name", DEFINED_HERE)
def test_their_weights_and_preprocessing_are_torchvisions(name):
    entries = get_model_weights(name)
    for published, entry in entries.__members__.items():
        found = weights_of(name, published)
        assert (found.url, found.name) == (entry.url, str(entry))
        transforms = entry.transforms()
        values = default_preprocessing(name, found.name)
        assert values["mean"] == pytest.approx(transforms.mean, rel=1e-12)
        assert values["std"] == pytest.approx(transforms.std, rel=1e-12)
        assert ([values["resize"]], [values["crop"]]) == (transforms.resize_size, transforms.crop_size)
        assert values["interpolation"] == transforms.interpolation.value
    assert weights_of(name, "default").url == entries.DEFAULT.url


def test_every_classifier_of_torchvision_has_an_entry():
    assert len(backbone_names()) > 80
    assert all(architecture(name).name == name for name in backbone_names())


def test_an_extraction_from_them_loads_no_torchvision():
    program = (
        "import json, sys; from featx.extraction.engine import Engine; from featx.extraction.recipe import Recipe\n"
        "Engine(Recipe.plan(backbone='alexnet-mini', device='cpu'))\n"
        "print(json.dumps([name for name in ('torchvision', 'sympy', 'torch._dynamo', 'sklearn') if name in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == []


def penultimate_is_what_the_final_layer_gets(name: str) -> None:
    backbone = Backbone(name)
    layers = backbone.names.resolve(f"{PENULTIMATE},{LOGITS},{PROB}")
    network = construct(name, seed=0)
    caught = []
    module = network.get_submodule(final_layer(network))
    hook = module.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0].clone()))
    fixed = name.startswith(("vit", "swin", "maxvit")) or not architecture(name).weights.files()
    side = backbone.side if fixed else max(96, min(backbone.side, 128))
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = network(pixels)
        hook.remove()
        traced, nodes = trace_nodes(network)
        found = capture_layers(traced, nodes, {layer.name: layer.node for layer in layers})(pixels)
    assert torch.equal(found[PENULTIMATE], caught[0])
    assert torch.equal(found[LOGITS], logits)
    torch.testing.assert_close(found[PROB], logits.softmax(1))
    if default_layer(name) == "fc7":
        fc7 = next(layer for layer in backbone.names.resolve("fc7"))
        with torch.inference_mode():
            assert torch.equal(capture_layers(traced, nodes, {"fc7": fc7.node})(pixels)["fc7"], caught[0])


@pytest.mark.parametrize("name", SAMPLE)
def test_penultimate_is_the_input_of_the_final_layer(name):
    penultimate_is_what_the_final_layer_gets(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in backbone_names() if name not in SAMPLE])
def test_penultimate_is_the_input_of_the_final_layer_of_every_network(name):
    penultimate_is_what_the_final_layer_gets(name)


def test_the_default_layer_is_known_without_the_network():
    for name in backbone_names():
        assert default_layer(name) == ("fc7" if name.startswith(("alexnet", "vgg")) else PENULTIMATE)


def test_a_run_is_built_for_the_weights_it_started_from(tmp_path):
    """The size of a vision transformer's position embedding depends on them."""
    described = {
        "format": "featx run", "schema": 1, "backbone": "vit_b_16", "classes": ["a", "b"], "preprocess": {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "squash": False},
        "plan": {"weights": {"spec": "x", "sha256": "0" * 64, "published": "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"}},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert construct(str(tmp_path)).image_size == 384
    assert construct("vit_b_16").image_size == 224
