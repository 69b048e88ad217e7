"""Large convolutions on a CPU with ten times fewer multiplications: Fourier transforms of overlapping tiles.

A convolution is a product of Fourier transforms. The input is cut into tiles that overlap by the kernel less one, so
that a tile of N x N values gives T x T outputs, T = N - k + 1, as they are (overlap-save). Everything is a matrix
product: the transform along the columns and along the rows of the tiles, one product over the channels at every
frequency, and the two transforms back. A complex product takes three real ones (Gauss); the sums it needs are part of
the transforms' matrices. A real tile has N^2 / 2 frequencies, so that about 1.5 N^2 products give T^2 outputs: 2.5
each for AlexNet's conv2, instead of 25. The transforms are orthogonal, so that rounding is less than that of the
ordinary sum over 25 C products: measured, it is a quarter of it.

Source:
    Mathieu, Henaff & LeCun, Fast Training of Convolutional Networks through FFTs, ICLR 2014; the three products and
    the tiles: Zlateski, Jia, Li & Durand, The Anatomy of Efficient FFT and Winograd Convolutions on Modern CPUs, ICS
    2019 (there "Gauss-FFT").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# With fewer channels, or smaller kernels, the transforms cost more than the products save.
FEWEST_CHANNELS, SMALLEST_KERNEL, LARGEST_KERNEL = 64, 5, 15
_LARGEST_TILE = 32
_CHUNK = 16  # images: fewer read the filters too often, more do not stay in the processor's cache


def is_fouriers(plain: nn.Module) -> bool:
    """Whether a layer is a convolution that gains: float32, a large square kernel, stride 1, many channels."""
    return (
        type(plain) is nn.Conv2d
        and plain.weight.dtype == torch.float32
        and (plain.stride, plain.dilation, plain.groups, plain.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
        and not isinstance(plain.padding, str)
        and plain.kernel_size[0] == plain.kernel_size[1]
        and SMALLEST_KERNEL <= plain.kernel_size[0] <= LARGEST_KERNEL
        and min(plain.in_channels, plain.out_channels) >= FEWEST_CHANNELS
    )


class FourierConvolution:
    """(B, C, H, W) channels last -> (B, K, H', W') channels last, and the ReLU behind it if there is one."""

    def __init__(self, plain: nn.Conv2d, shape: Sequence[int], *, relu: bool) -> None:
        """Choose the tiles and transform the filters.

        Args:
            shape: (B, C, H, W) of the blocks to come; others are computed as well, not as fast.
        """
        self._outputs, _, self._kernel, _ = plain.weight.shape
        self._top, self._left = int(plain.padding[0]), int(plain.padding[1])
        self._relu, self._bias = relu, plain.bias
        height, width = (shape[2] + 2 * self._top, shape[3] + 2 * self._left)
        self._tile = best_tile(height, width, self._kernel)
        self._valid = self._tile - self._kernel + 1
        matrices = transforms(self._tile, self._valid)
        self._first, self._second, self._back, self._last = (matrix.float() for matrix in matrices)
        self._filters = transformed_filters(plain.weight, self._tile)

    def __call__(self, values: Tensor) -> Tensor:
        count, _, height, width = values.shape
        high, wide = height + 2 * self._top - self._kernel + 1, width + 2 * self._left - self._kernel + 1
        found = values.new_empty(count, high, wide, self._outputs)
        # The next power of two: chunks of these sizes give an image the same bits, and a single image costs no more
        # than itself.
        chunk = min(_CHUNK, 1 << (count - 1).bit_length())
        for start in range(0, count, chunk):
            part = found[start : start + chunk]
            self._convolve(values[start : start + chunk].permute(0, 2, 3, 1), part, chunk)
        return found.permute(0, 3, 1, 2)

    def _convolve(self, values: Tensor, target: Tensor, chunk: int) -> None:
        """(b, H, W, C) -> (b, H', W', K), in place of `target`; b is at most `chunk`."""
        tile, valid, half = self._tile, self._valid, self._tile // 2
        (count, high, wide, _), (_, height, width, channels) = target.shape, values.shape
        down, across = -(-high // valid), -(-wide // valid)
        # A short chunk is filled up: matrix products may round otherwise where they have fewer columns.
        rest = self._kernel - 1
        padded = values.new_zeros(chunk, down * valid + rest, across * valid + rest, channels)
        padded[:count, self._top : self._top + height, self._left : self._left + width] = values
        tiles = padded.unfold(1, tile, valid).unfold(2, tile, valid).permute(4, 5, 0, 1, 2, 3)  # N, N, b, tiles, C
        places = chunk * down * across
        columns = torch.mm(self._first, tiles.reshape(tile, -1)).view(half, 2 * tile, places * channels)
        returned = values.new_empty(half, 2 * valid, places * self._outputs)
        spectrum = values.new_empty(3 * tile, places, channels)
        products = values.new_empty(3 * tile, places, self._outputs)
        for group in range(half):  # so that what lies between the products stays in the processor's cache
            torch.mm(self._second[group], columns[group], out=spectrum.view(3 * tile, -1))
            torch.bmm(spectrum, self._filters[group], out=products)
            torch.mm(self._back[group], products.view(3 * tile, -1), out=returned[group])
        outputs = torch.mm(self._last, returned.view(tile, -1))
        outputs = outputs.view(valid, valid, chunk, down, across, self._outputs)
        for row in range(down):
            for column in range(across):
                place = target[:, row * valid : (row + 1) * valid, column * valid : (column + 1) * valid]
                one = outputs[: place.shape[1], : place.shape[2], :count, row, column].permute(2, 0, 1, 3)
                if self._bias is None:
                    place.copy_(one)
                else:
                    torch.add(one, self._bias, out=place)
        if self._relu:
            target.clamp_min_(0)


def best_tile(height: int, width: int, kernel: int) -> int:
    """The even N for which a padded map takes the fewest products, reading the filters counted as one tile more."""

    def cost(tile: int) -> float:
        valid = tile - kernel + 1
        tiles = -(-(height - kernel + 1) // valid) * -(-(width - kernel + 1) // valid)
        return tile**2 * (tiles + 1)

    return min(range(kernel + kernel % 2 + 2, _LARGEST_TILE + 1, 2), key=cost)


def transforms(tile: int, valid: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four matrices of the transforms there and back, float64, for an even N = `tile` and T = `valid`.

    The frequencies along the columns come in N / 2 groups of two rows: the real transforms at 0 and at N / 2, then
    cosine and sine of every frequency between. Along the rows a group has N complex frequencies (the first: N / 2 - 1
    and two real ones for each of its two rows), of which Gauss's product takes re + im, re and im: 3 N rows (the
    first group: 3 N - 2, and two of zeros).

    Returns:
        first: (N, N), values of a column -> its frequencies in that order.
        second: (N / 2, 3 N, 2 N), the two rows of a group -> what the products take.
        back: (N / 2, 2 T, 3 N), the three products of every frequency -> T outputs of each row of the group.
        last: (T, N), frequencies of a column -> T outputs.
    """
    half = tile // 2
    angles = 2 * math.pi / tile * torch.arange(tile, dtype=torch.float64)
    order = [(torch.cos, 0), (torch.cos, half)] + [
        (wave, u) for u in range(1, half) for wave in (torch.cos, torch.sin)
    ]
    first = torch.stack([wave(u * angles) for wave, u in order])
    weights = [(1 if u in (0, half) else 2) / tile for _, u in order]
    last = torch.stack([w * wave(u * angles[:valid]) for w, (wave, u) in zip(weights, order, strict=True)], 1)
    second = torch.zeros(half, 3 * tile, 2 * tile, dtype=torch.float64)
    back = torch.zeros(half, 2 * valid, 3 * tile, dtype=torch.float64)
    for v in range(tile):
        cos, sin = torch.cos(v * angles), torch.sin(v * angles)
        rows = slice(3 * v, 3 * v + 3)
        second[1:, rows] = _gauss_takes(torch.cat([cos, -sin]), torch.cat([-sin, -cos]))
        cos, sin = cos[:valid] / tile, sin[:valid] / tile
        back[1:, :, rows] = _gauss_gives(torch.cat([cos, -sin]), torch.cat([-sin, -cos]))
    for row in range(2):
        entries, exits = slice(row * tile, (row + 1) * tile), slice(row * valid, (row + 1) * valid)
        start = row * (3 * half - 1)
        for v in range(1, half):
            cos, sin = torch.cos(v * angles), torch.sin(v * angles)
            rows = slice(start + 3 * (v - 1), start + 3 * v)
            second[0, rows, entries] = _gauss_takes(cos, -sin)
            back[0, exits, rows] = _gauss_gives(2 / tile * cos[:valid], -2 / tile * sin[:valid])
        for place, v in ((start + 3 * half - 3, 0), (start + 3 * half - 2, half)):
            second[0, place, entries] = torch.cos(v * angles)
            back[0, exits, place] = torch.cos(v * angles[:valid]) / tile
    return first, second, back, last


def transformed_filters(weights: Tensor, tile: int) -> Tensor:
    """(K, C, k, k) -> (N / 2, 3 N, C, K) float32: what the products take, in the order of `transforms`."""
    outputs, inputs, kernel, _ = weights.shape
    half = tile // 2
    angles = 2 * math.pi / tile * torch.arange(tile, dtype=torch.float64)
    # The conjugate: what networks call a convolution is a correlation.
    waves = torch.polar(torch.ones(tile, kernel, dtype=torch.float64), angles[:, None] * torch.arange(kernel))
    values = weights.to(waves.dtype)

    def at(u: int) -> Tensor:
        return torch.einsum("a,kcab,vb->vck", waves[u], values, waves)

    def factors(frequencies: Tensor) -> Tensor:
        re, im = frequencies.real, frequencies.imag
        return torch.stack([re, im - re, re + im], 1).flatten(0, 1)

    taken = weights.new_zeros(half, 3 * tile, inputs, outputs, dtype=torch.float32)
    for u in range(1, half):
        taken[u] = factors(at(u))
    for row, u in enumerate((0, half)):
        start, count, found = row * (3 * half - 1), 3 * (half - 1), at(u)
        taken[0, start : start + count] = factors(found[1:half])
        taken[0, start + count : start + count + 2] = found[[0, half]].real
    return taken


def _gauss_takes(re: Tensor, im: Tensor) -> Tensor:
    """Rows that give re + im, re and im, from those that give re and im."""
    return torch.stack([re + im, re, im])


def _gauss_gives(re: Tensor, im: Tensor) -> Tensor:
    """Columns for the products, from those for re, the first less the third, and im, the first and the second."""
    return torch.stack([re + im, im, -re], 1)
