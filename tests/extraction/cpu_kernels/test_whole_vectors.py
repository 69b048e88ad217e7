"""Activations give an image the same bits alone and beside others, and what PyTorch's give but for rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import featx
from featx.extraction.cpu_kernels.whole_vectors import VECTOR, fill_vectors


class Every(nn.Module):
    def __init__(self):
        super().__init__()
        self.gelu, self.rough, self.silu = nn.GELU(), nn.GELU("tanh"), nn.SiLU()
        self.sigmoid, self.tanh = nn.Sigmoid(), nn.Tanh()

    def forward(self, x):
        modules = [self.gelu(x), self.rough(x), self.silu(x), self.sigmoid(x), self.tanh(x)]
        functions = [
            torch.sigmoid(x),
            x.sigmoid(),
            torch.tanh(x),
            x.tanh(),
            F.silu(x),
            F.gelu(x),
            F.gelu(x, approximate="tanh"),
        ]
        return torch.stack([*modules, *functions], 1)


@pytest.mark.parametrize("shape", [(50,), (3, 5, 7), (VECTOR,), (8, 4, 4)])
def test_an_image_has_the_same_bits_alone_and_beside_others(shape):
    network = fx.symbolic_trace(Every())
    fill_vectors(network)
    values = 4 * torch.randn((7, *shape), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = network(values)
        for place in range(7):
            assert torch.equal(network(values[place : place + 1])[0], together[place])
        torch.testing.assert_close(together, Every()(values), rtol=1e-6, atol=1e-6)
    assert len(network(values[:0])) == 0


@pytest.mark.parametrize("name", ["regnet_y_400mf", "mobilenet_v3_small", "efficientnet_b0"])
def test_features_do_not_depend_on_the_number_of_images(name):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (90, 100, 3), np.uint8) for _ in range(7)]
    found = []
    for block in (1, 7):
        with featx.Extractor(
            name, "penultimate", weights="random:0", batch_size=block, workers=1, crop=96
        ) as extractor:
            found.append(extractor(images)["penultimate"])
    np.testing.assert_array_equal(*found)
