"""What the axes of a layer are: where the image is shifted, the values shift along H and W, and along nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featx.errors import UsageError
from featx.extraction.engine import Engine
from featx.extraction.recipe import Recipe
from featx.networks.backbone import Backbone
from featx.networks.build import construct
from featx.networks.graph.layout import CHANNELS_LAST, CLASS_AND_TOKENS, MAP, OTHER, TOKENS, VECTOR

# By hand, from the source of torchvision. A map put together from windows is known by the convolution behind it only, so
# what a window attention of MaxViT returns stays "other": it can be flattened, but not pooled.
LAYOUTS = {
    "vit_b_32": {"conv_proj": MAP, "reshape": OTHER, "permute": TOKENS, "encoder.dropout": CLASS_AND_TOKENS,
                 "encoder.layers.encoder_layer_3": CLASS_AND_TOKENS, "encoder.layers.encoder_layer_3.mlp.0":
                 CLASS_AND_TOKENS, "encoder.layers.encoder_layer_3.self_attention": CLASS_AND_TOKENS,
                 "encoder.ln": CLASS_AND_TOKENS, "penultimate": VECTOR, "heads": VECTOR},
    "swin_t": {"features.0.0": MAP, "features.0": CHANNELS_LAST, "features.1.0.attn": CHANNELS_LAST,
               "features.1.1.mlp.0": CHANNELS_LAST, "features.2": CHANNELS_LAST, "features.7": CHANNELS_LAST,
               "norm": CHANNELS_LAST, "permute": MAP, "avgpool": MAP, "penultimate": VECTOR},
    "swin_v2_t": {"features.2": CHANNELS_LAST, "features.7": CHANNELS_LAST, "permute": MAP},
    "convnext_tiny": {"features.1.0.block.0": MAP, "features.1.0.block.2": CHANNELS_LAST,
                      "features.1.0.block.3": CHANNELS_LAST, "features.1.0": MAP, "features.7": MAP},
    "maxvit_t": {"stem": MAP, "blocks.0.layers.0.layers.MBconv": MAP,
                 "blocks.0.layers.0.layers.window_attention.attn_layer": OTHER,
                 "blocks.0.layers.0.layers.window_attention": OTHER, "blocks.0.layers.0.layers.grid_attention": MAP,
                 "blocks.3": MAP, "penultimate": VECTOR},
    "shufflenet_v2_x0_5": {"stage2.0": MAP, "stage4": MAP, "stage3.1.branch2.3": MAP, "stage3.1.transpose": OTHER},
    "densenet121": {"features.denseblock2.denselayer3": MAP, "features": MAP},
    "googlenet": {"inception3a": MAP, "inception4c.branch3": MAP, "penultimate": VECTOR},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_axes_are_those_of_torchvisions_source(name):
    backbone = Backbone(name)
    rows = {layer: backbone.describe(backbone.names.resolve(layer))[0] for layer in LAYOUTS[name]}
    assert {layer: row.layout for layer, row in rows.items()} == LAYOUTS[name]


def engine(name: str, layers: str, pool: str) -> Engine:
    return Engine(
        Recipe.plan(backbone=name, layers=layers, weights="random:0", pool=pool, device="cpu", batch_size=1)
    )


def hooked(network: nn.Module, module: str, pixels: torch.Tensor) -> torch.Tensor:
    caught = []
    handle = network.get_submodule(module).register_forward_hook(lambda _m, _i, output: caught.append(output.clone()))
    with torch.no_grad():
        network(pixels)
    handle.remove()
    return caught[0]


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(name: str, pixels: torch.Tensor) -> torch.Tensor:
    values = Backbone(name).preprocessing
    mean, std = (torch.tensor(values[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (pixels / 255 - mean) / std


def test_tokens_are_pooled_by_their_class_token_and_the_mean_of_the_others(pixels):
    layer = "encoder.layers.encoder_layer_1"
    tokens = hooked(construct("vit_b_32", seed=0), layer, normalised("vit_b_32", pixels))[0]
    expected = {"cls": tokens[0], "mean": tokens[1:].mean(0), "cls+mean": torch.cat([tokens[0], tokens[1:].mean(0)])}
    for pool, values in expected.items():
        found = torch.from_numpy(engine("vit_b_32", layer, pool)(pixels.numpy())[layer][0])
        torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-5)


def test_maps_with_their_channels_last_are_pooled_over_height_and_width(pixels):
    layer = "features.3"
    maps = hooked(construct("swin_t", seed=0), layer, normalised("swin_t", pixels))[0]
    assert maps.shape == (28, 28, 192)
    for pool, values in {"avg": maps.mean((0, 1)), "max": maps.amax((0, 1))}.items():
        found = torch.from_numpy(engine("swin_t", layer, pool)(pixels.numpy())[layer][0])
        torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-5)
    found = engine("swin_t", layer, "spp:1,2")(pixels.numpy())[layer][0].reshape(-1)
    quarters = [maps[y : y + 14, x : x + 14].amax((0, 1)) for y in (0, 14) for x in (0, 14)]
    expected = torch.cat([maps.amax((0, 1)), torch.stack(quarters, 1).reshape(-1)])
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "layer", "pool", "advice"), [
    ("vit_b_32", "encoder.ln", "avg", "none, flatten, cls, mean or cls+mean"),
    ("vit_b_32", "permute", "cls", "none, flatten or mean"),
    ("swin_t", "features.3", "cls", "none, flatten, avg, max or spp:1,2,4"),
    ("alexnet", "conv5", "mean", "none, flatten, avg, max or spp:1,2,4"),
    ("maxvit_t", "blocks.0.layers.0.layers.window_attention.attn_layer", "avg", "none or flatten"),
])  # fmt: skip
def test_a_pooling_that_does_not_suit_a_layer_is_refused_with_those_that_do(name, layer, pool, advice):
    recipe = Recipe.plan(backbone=name, layers=layer, weights="random:0", pool=pool, device="cpu")
    with pytest.raises(UsageError, match="does not suit") as refused:
        recipe.layer_specs()
    assert str(refused.value).endswith(f"Use --pool {advice}")
