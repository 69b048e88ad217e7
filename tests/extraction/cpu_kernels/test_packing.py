"""Packed layers give what PyTorch's modules give, or are not used."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from featx.extraction.cpu_kernels.packing import pack
from featx.extraction.engine import Engine
from featx.extraction.provenance import hardware
from featx.extraction.recipe import Recipe
from featx.networks.build import construct
from featx.runtime.threads import one_thread


class Odd(nn.Module):
    """Groups, dilation, stride, one layer in two places, a value used before and after its ReLU, ReLU as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.relu = nn.ReLU()
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(8, 12, 3, dilation=2, bias=False)
        self.same = nn.Conv2d(12, 6, 3, padding="same")
        self.fc1 = nn.Linear(6, 20)
        self.fc2 = nn.Linear(20, 7, bias=False)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        first = self.relu(self.first(pixels))
        before = self.twice(first)
        second = torch.relu(self.twice(nn.functional.max_pool2d(nn.functional.relu(before), 2)))
        maps = self.same(self.wide(second))
        return {
            "before": before,
            "second": second,
            "logits": self.fc2(self.fc1(maps.mean((2, 3))).relu()),
            "negative": -self.fc1(maps.amax((2, 3))),
        }


def odd(dtype: torch.dtype) -> tuple[fx.GraphModule, Tensor]:
    torch.manual_seed(1)
    network = fx.symbolic_trace(Odd().eval()).to(dtype).to(memory_format=torch.channels_last)
    return network, torch.randn(5, 3, 40, 36).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_packed_layers_give_what_the_modules_give(dtype, tolerance):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    plain, pixels = odd(dtype)
    with torch.inference_mode():
        expected = copy.deepcopy(plain).double()(pixels.double())
        packed = pack(plain, pixels[:1], len(pixels))
        assert packed is not None
        for _ in range(2):  # the first block packs, the second uses what was packed
            found = packed(pixels)
    for name, values in expected.items():
        assert found[name].dtype == dtype
        worst = (found[name].double() - values).abs().max() / values.abs().max()
        assert worst <= tolerance, name
    assert (found["before"] < 0).any()
    assert (found["negative"] != 0).any()


def test_the_originals_are_freed():
    plain, pixels = odd(torch.float32)
    with torch.inference_mode():
        packed = pack(plain, pixels[:1], len(pixels))
        assert packed is not None
        packed(pixels)
    left = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.weight is not None]
    assert [getattr(m, "padding", None) for m in left] == ["same"], "only what could not be packed keeps its weights"
    assert [type(m).__name__ for m in packed.modules() if isinstance(m, nn.Conv2d | nn.Linear)] == ["Conv2d"]
    assert all(m.padding == "same" for m in packed.modules() if isinstance(m, nn.Conv2d))


def missing(*_: object) -> Tensor:
    raise NotImplementedError("no such operator in this build")


def something_else(values: Tensor, weights: Tensor, *_: object) -> Tensor:
    return values.new_full((values.shape[0], weights.shape[0]), 2.0)


@pytest.mark.parametrize("operator", [missing, something_else])
def test_a_pytorch_without_the_operators_runs_its_own_modules(operator, monkeypatch):
    recipe = Recipe.plan(
        backbone="alexnet",
        layers="conv2,fc7",
        weights="random:3",
        pool="none",
        device="cpu",
        batch_size=2,
    )
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    usual = Engine(recipe)
    assert usual.packed
    assert hardware(usual).endswith("packed weights")
    expected = usual(pixels.numpy())
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator)
    careful = Engine(recipe)
    assert not careful.packed
    assert hardware(careful).endswith("PyTorch's modules")
    for name, values in careful(pixels.numpy()).items():
        assert abs(values - expected[name]).max() <= 5e-6 * abs(values).max()


def test_plain_is_pytorchs_own_rounding_to_the_last_bit():
    """What a training computes in its first steps is what was stored for it."""
    recipe = Recipe.plan(
        backbone="alexnet-mini", layers="conv3,conv5,fc7", weights="random:3", pool="none", device="cpu",
        batch_size=6, plain=True,
    )  # fmt: skip
    pixels = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = Engine(recipe)
    assert hardware(extractor).endswith("PyTorch's modules")
    found = extractor(pixels.numpy())
    network = construct("alexnet-mini", seed=3).eval().to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (recipe.preprocess.mean, recipe.preprocess.std))
    values = ((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), one_thread():
        expected = [values := module(values) for module in network.features]
        vectors = network.classifier[:8](expected[-1].flatten(1))
    assert torch.equal(torch.from_numpy(found["conv3"]), expected[10])
    assert torch.equal(torch.from_numpy(found["conv5"]), expected[16])
    assert torch.equal(torch.from_numpy(found["fc7"]), vectors)
    plainly = Recipe.plan(
        backbone="alexnet-mini",
        layers="conv3",
        weights="random:3",
        pool="none",
        device="cpu",
        batch_size=6,
    )
    assert Engine(plainly).packed
