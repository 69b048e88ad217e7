"""Convolutions by Fourier transforms are convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featx.extraction.cpu_kernels import fourier
from featx.extraction.cpu_kernels.fourier import FourierConvolution, best_tile, is_fouriers, transforms


def convolution(inputs: int, outputs: int, kernel: int = 5, padding: int | tuple[int, int] = 2, **rest) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, **rest).requires_grad_(False)


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize(
    ("kernel", "padding", "size"),
    [
        (5, 2, (27, 27)), (5, 2, (16, 16)), (5, 2, (1, 1)), (5, 2, (40, 7)), (5, 0, (9, 30)), (5, (2, 0), (3, 11)),
        (6, 1, (13, 8)), (7, 3, (20, 11)), (11, 5, (31, 33)),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("relu", "bias"), [(True, True), (False, True), (True, False)])
def test_it_gives_the_convolution(kernel, padding, size, relu, bias):
    """Tiles that fit and tiles that do not, kernels of even and odd size, borders of all kinds; two chunks."""
    plain, values = convolution(6, 9, kernel, padding, bias=bias), maps(18, 6, *size)
    with torch.inference_mode():
        found = FourierConvolution(plain, values.shape, relu=relu)(values)
        expected = nn.functional.conv2d(
            values.double(), plain.weight.double(), None if plain.bias is None else plain.bias.double(),
            padding=padding,
        )  # fmt: skip
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (expected < 0).any()
    expected = expected.relu() if relu else expected
    assert (found - expected).abs().max() <= 5e-7 * expected.abs().max()


def test_blocks_of_other_sizes_than_it_was_made_for_are_computed_too():
    plain = convolution(6, 9)
    layer = FourierConvolution(plain, (4, 6, 27, 27), relu=False)
    with torch.inference_mode():
        for values in (maps(9, 6, 27, 27), maps(2, 6, 12, 40)):
            expected = nn.functional.conv2d(values.double(), plain.weight.double(), plain.bias.double(), padding=2)
            assert (layer(values) - expected).abs().max() <= 5e-7 * expected.abs().max()


def test_rounding_is_less_than_half_that_of_the_ordinary_sum():
    """alexnet's conv2."""
    plain, values = convolution(64, 192), maps(2, 64, 27, 27).relu()
    with torch.inference_mode():
        exact = nn.functional.conv2d(values.double(), plain.weight.double(), plain.bias.double(), padding=2)
        ours = FourierConvolution(plain, values.shape, relu=False)(values)
        ordinary = plain(values)
    assert (ours - exact).abs().max() <= (ordinary - exact).abs().max() / 2


@pytest.mark.parametrize("chunk", [3, 4, 16])
def test_an_images_bytes_do_not_depend_on_its_place_or_on_the_others(monkeypatch, chunk):
    monkeypatch.setattr(fourier, "_CHUNK", chunk)
    values = maps(7, 64, 27, 27)
    layer = FourierConvolution(convolution(64, 192), values.shape, relu=True)
    with torch.inference_mode():
        whole = layer(values)
        order = torch.tensor([4, 0, 6, 2, 1, 3, 5])
        assert torch.equal(layer(values[order].contiguous(memory_format=torch.channels_last)), whole[order])
        others = values.clone(memory_format=torch.channels_last)
        others[[0, 1, 2, 4, 5, 6]] = 0
        assert torch.equal(layer(others)[3], whole[3])
        assert torch.equal(layer(values[:1]), whole[:1])


@pytest.mark.parametrize("tile", [8, 18])
def test_there_and_back_with_filters_of_one_is_the_valid_part(tile):
    """A filter of one value, 1, at its upper left corner: every frequency is multiplied by exactly 1."""
    valid = tile - 4
    first, second, back, last = transforms(tile, valid)
    values = torch.randn(tile, tile, dtype=torch.float64)
    columns = (first @ values).view(tile // 2, 2 * tile, 1)
    taken = second @ columns
    # Gauss's factors of 1 are 1, -1 and 1; of the two real products of the first group, 1.
    factors = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).repeat(tile)
    factors = factors.repeat(tile // 2, 1)
    half = tile // 2
    for row in range(2):
        start = row * (3 * half - 1)
        factors[0, start : start + 3 * (half - 1)] = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).repeat(
            half - 1
        )
        factors[0, start + 3 * (half - 1) : start + 3 * half - 1] = 1
    outputs = last @ (back @ (factors[..., None] * taken)).view(tile, valid)
    torch.testing.assert_close(outputs, values[:valid, :valid], rtol=0, atol=1e-12)


def test_alexnets_maps_of_27_are_cut_into_four_tiles_of_18():
    assert best_tile(31, 31, 5) == 18
    assert best_tile(20, 20, 5) == 12
    assert best_tile(5, 5, 5) == 8


def test_only_what_gains_is_done_this_way():
    assert is_fouriers(convolution(64, 192))
    assert is_fouriers(convolution(64, 192, 7, 0))
    assert not is_fouriers(convolution(48, 192))
    assert not is_fouriers(convolution(64, 192, 3, 1))
    assert not is_fouriers(convolution(64, 192).bfloat16())
    for change in (
        {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": "same"}, {"padding_mode": "reflect"},
        {"kernel_size": (1, 7)},
    ):  # fmt: skip
        assert not is_fouriers(nn.Conv2d(64, 192, **{"kernel_size": 5, "padding": 2, **change})), change
