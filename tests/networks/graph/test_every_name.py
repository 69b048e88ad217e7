"""Every name a network answers to means what a forward hook on the module of that name sees."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor, nn

from featx.networks.backbone import Backbone
from featx.networks.build import construct
from featx.networks.graph.capture import capture_layers, trace_nodes
from featx.networks.registry import backbone_names

# One of every family, for every run; the others are slow.
SAMPLE = (
    "alexnet", "vgg11_bn", "vit_b_32", "swin_t", "efficientnet_b0", "regnet_y_400mf", "inception_v3", "googlenet",
    "resnet18", "squeezenet1_1", "convnext_tiny", "shufflenet_v2_x0_5", "mobilenet_v3_small", "densenet121",
    "mnasnet0_5",
)  # fmt: skip
FIXED_SIZE = (
    "vit", "maxvit", "alexnet-2012", "caffenet", "zfnet", "convnet-mnist", "lenet5", "deepface", "highway",
)  # fmt: skip


def side_of(name: str, own: int) -> int:
    if name.startswith(FIXED_SIZE) or "mini" in name:
        return own
    return min(own, 96)


def hooked(network: nn.Module, pixels: Tensor) -> dict[str, list[Tensor]]:
    """Module name -> a copy of what each of its calls returns; of several values the first."""
    seen: dict[str, list[Tensor]] = defaultdict(list)

    def keep(name):
        def hook(_module, _inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            seen[name].append(first.clone())

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, m in network.named_modules() if name]
    with torch.no_grad():
        network(pixels)
    for hook in hooks:
        hook.remove()
    return seen


def vary(network: nn.Module) -> None:
    """Make every normalisation differ from the next: as initialised many of them compute the same."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None:
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)


def check_every_name(name: str) -> None:
    network = construct(name, seed=0)
    vary(network)
    backbone = Backbone(name)
    side = side_of(name, backbone.side)
    if side != backbone.side:
        backbone = Backbone(name, side)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = hooked(network, pixels)
    modules = dict(network.named_modules())
    accepted = {one.name: one for one in [*backbone.names.main, *backbone.names.others.values()]}
    asked = {layer: accepted[layer].node for layer in expected if layer in accepted}
    traced, nodes = trace_nodes(network)
    with torch.no_grad():
        found = capture_layers(traced, nodes, asked)(pixels)
    wrong = [layer for layer in asked if not torch.equal(found[layer], expected[layer][0])]
    assert wrong == []
    # Every module that runs and returns a tensor of features is accepted.
    refused = [
        layer
        for layer, calls in expected.items()
        if layer not in accepted and calls[0].ndim >= 2 and calls[0].shape[0] == len(pixels)
    ]
    assert refused == []
    # The names of further calls are those of no module.
    assert not {layer for layer in accepted if layer in modules and layer not in expected}
    for layer, calls in expected.items():
        for number, value in enumerate(calls[1:], 1):
            again = accepted.get(f"{layer}_{number}")
            if again is not None and f"{layer}_{number}" not in modules:
                with torch.no_grad():
                    assert torch.equal(capture_layers(traced, nodes, {"it": again.node})(pixels)["it"], value)


@pytest.mark.parametrize("name", SAMPLE)
def test_every_name_is_what_a_hook_on_that_module_sees(name):
    check_every_name(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in backbone_names() if name not in SAMPLE])
def test_every_name_is_what_a_hook_on_that_module_sees_in_every_network(name):
    check_every_name(name)
