"""3 x 3 convolutions on a CPU with 2.25 times fewer multiplications: Winograd's minimal filtering, F(2 x 2, 3 x 3).

Every 4 x 4 window of the input (its neighbours overlap it by 2) and every filter are transformed, multiplied value by
value and summed over the channels, which makes 16 matrix products, and transformed back to 2 x 2 outputs. The input's
and the output's transforms only add and subtract, so that rounding is no worse than that of the ordinary sum of
9 C products: measured, it is a third of it.

Source:
    Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

# With fewer channels the transforms, bound by memory, cost more than the products save.
FEWEST_CHANNELS = 128
_CHUNK_BYTES = 8 << 20  # of transformed input or output: they should stay in the processor's cache
_FILTER = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
_MIDDLE = 5  # of the 16 products, the one that counts once, and positively, in all four outputs: the bias goes there
Product = Callable[[Tensor], Tensor]
PackProduct = Callable[[Tensor, Tensor | None, int], Product]


def is_winograds(plain: nn.Module) -> bool:
    """Whether a layer is a convolution that gains: float32, 3 x 3, stride 1, a border of one zero, many channels."""
    return (
        type(plain) is nn.Conv2d
        and plain.weight.dtype == torch.float32
        and (plain.kernel_size, plain.stride, plain.dilation, plain.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and (plain.padding, plain.padding_mode) == ((1, 1), "zeros")
        and min(plain.in_channels, plain.out_channels) >= FEWEST_CHANNELS
    )


class WinogradConvolution:
    """(B, C, H, W) channels last -> (B, K, H, W) channels last, and the ReLU behind it if there is one."""

    def __init__(self, plain: nn.Conv2d, *, relu: bool, pack: PackProduct) -> None:
        """Transform the filters.

        Args:
            pack: weights (K, C), bias (K,) or None, rows -> the product (rows, C) -> (rows, K) with them.
        """
        self._outputs, self._inputs = plain.weight.shape[:2]
        self._relu = relu
        self._largest = max(1, _CHUNK_BYTES // (16 * 4 * max(self._outputs, self._inputs)))
        filters = torch.einsum("ia,kcab,jb->jikc", _FILTER, plain.weight.double(), _FILTER).float().flatten(0, 1)
        biases = [plain.bias if place == _MIDDLE else None for place in range(16)]
        self._products = [
            pack(weights.contiguous(), bias, self._largest) for weights, bias in zip(filters, biases, strict=True)
        ]

    def __call__(self, values: Tensor) -> Tensor:
        count, channels, height, width = values.shape
        down, across = -(-height // 2), -(-width // 2)  # windows
        padded = values.new_zeros(count, 2 * down + 2, 2 * across + 2, channels)
        padded[:, 1 : height + 1, 1 : width + 1] = values.permute(0, 2, 3, 1)
        found = values.new_empty(count, 2 * down, 2 * across, self._outputs)
        for images, first, rows in self._chunks(count, down, across):
            part = padded[images, 2 * first : 2 * (first + rows) + 2]
            self._filter(part, found[images, 2 * first : 2 * (first + rows)])
        return found[:, :height, :width].contiguous().permute(0, 3, 1, 2)

    def _chunks(self, count: int, down: int, across: int) -> Iterator[tuple[slice, int, int]]:
        """Images, first row of windows and number of them: several whole images, or rows of one."""
        whole = self._largest // (down * across)
        if whole:
            for start in range(0, count, whole):
                yield slice(start, min(start + whole, count)), 0, down
            return
        rows = max(1, self._largest // across)
        for image in range(count):
            for first in range(0, down, rows):
                yield slice(image, image + 1), first, min(rows, down - first)

    def _filter(self, part: Tensor, target: Tensor) -> None:
        """(b, 2 n + 2, 2 m + 2, C) -> (b, 2 n, 2 m, K), in place of `target`."""
        images, height, width, channels = part.shape
        n, m = height // 2 - 1, width // 2 - 1
        by_rows = part.new_empty(4, images, n, width, channels)
        _transform([part[:, k : k + 2 * n : 2] for k in range(4)], by_rows)
        windows = part.new_empty(4, 4, images, n, m, channels)
        _transform([by_rows[:, :, :, k : k + 2 * m : 2] for k in range(4)], windows)
        flat = windows.view(16, images * n * m, channels)
        found = [product(one).view(images, n, m, -1) for product, one in zip(self._products, flat, strict=True)]
        for right in range(2):
            # Column by column of the 4 x 4 products, then the rows of what they have become.
            columns = [
                found[row] + found[4 + row] + found[8 + row]
                if right == 0
                else found[4 + row] - found[8 + row] - found[12 + row]
                for row in range(4)
            ]
            self._finish(columns[0].add_(columns[1]).add_(columns[2]), target[:, 0::2, right::2])
            self._finish(columns[1].sub_(columns[2]).sub_(columns[3]), target[:, 1::2, right::2])

    def _finish(self, values: Tensor, target: Tensor) -> None:
        if self._relu:
            torch.clamp_min(values, 0, out=target)
        else:
            target.copy_(values)


def _transform(lines: list[Tensor], target: Tensor) -> None:
    """Four neighbouring lines d of windows -> (d0 - d2, d1 + d2, d2 - d1, d1 - d3)."""
    torch.sub(lines[0], lines[2], out=target[0])
    torch.add(lines[1], lines[2], out=target[1])
    torch.sub(lines[2], lines[1], out=target[2])
    torch.sub(lines[1], lines[3], out=target[3])
