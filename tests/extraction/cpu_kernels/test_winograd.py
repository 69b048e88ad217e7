"""Convolutions by Winograd's products are convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featx.extraction.cpu_kernels import winograd
from featx.extraction.cpu_kernels.packing import _product
from featx.extraction.cpu_kernels.winograd import WinogradConvolution, is_winograds
from featx.runtime.threads import one_thread


def convolution(inputs: int, outputs: int, *, bias: bool = True, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias).requires_grad_(False)


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 19, 1 << 23])
@pytest.mark.parametrize("size", [(13, 13), (14, 14), (7, 20), (1, 1), (2, 3)])
@pytest.mark.parametrize(("relu", "bias"), [(True, True), (False, True), (True, False)])
def test_it_gives_the_convolution(monkeypatch, chunk_bytes, size, relu, bias):
    """Whatever is cut into chunks: rows of windows, images, several images."""
    monkeypatch.setattr(winograd, "_CHUNK_BYTES", chunk_bytes)
    plain, values = convolution(20, 33, bias=bias), maps(3, 20, *size)
    with torch.inference_mode():
        found = WinogradConvolution(plain, relu=relu, pack=_product)(values)
        expected = nn.functional.conv2d(
            values.double(), plain.weight.double(), None if plain.bias is None else plain.bias.double(), padding=1
        )
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (expected < 0).any()
    expected = expected.relu() if relu else expected
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_rounding_is_no_worse_than_that_of_the_ordinary_sum():
    plain, values = convolution(512, 256), maps(2, 512, 14, 14).relu()
    with torch.inference_mode():
        exact = nn.functional.conv2d(values.double(), plain.weight.double(), plain.bias.double(), padding=1)
        ours = WinogradConvolution(plain, relu=False, pack=_product)(values)
        ordinary = plain(values)
    assert (ours - exact).abs().max() <= (ordinary - exact).abs().max()


@pytest.mark.parametrize("chunk_bytes", [1 << 19, 1 << 23])
def test_an_images_bytes_do_not_depend_on_its_place_or_on_the_others(monkeypatch, chunk_bytes):
    monkeypatch.setattr(winograd, "_CHUNK_BYTES", chunk_bytes)
    layer = WinogradConvolution(convolution(130, 140), relu=True, pack=_product)
    values = maps(7, 130, 13, 13)
    with torch.inference_mode(), one_thread():  # as an extraction computes: several share out the rows
        whole = layer(values)
        order = torch.tensor([4, 0, 6, 2, 1, 3, 5])
        assert torch.equal(layer(values[order].contiguous(memory_format=torch.channels_last)), whole[order])
        others = values.clone(memory_format=torch.channels_last)
        others[[0, 1, 2, 4, 5, 6]] = 0
        assert torch.equal(layer(others)[3], whole[3])


def test_only_what_gains_is_done_this_way():
    assert is_winograds(convolution(128, 128))
    assert not is_winograds(convolution(64, 128))
    assert not is_winograds(convolution(128, 128).bfloat16())
    for change in (
        {"kernel_size": 5, "padding": 2}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"padding": 0},
        {"groups": 2, "padding": 1}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"},
    ):  # fmt: skip
        assert not is_winograds(nn.Conv2d(128, 128, **{"kernel_size": 3, **change})), change
