"""What a step is computed from, wherever it is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featx.training.data.augment import Augmentation, draw
from featx.training.data.inputs import FeatureInputs


@pytest.mark.parametrize("count", [1, 2])
def test_features_kept_on_the_device_are_those_that_are_read(count):
    generator = np.random.default_rng(0)
    views = [generator.normal(size=(20, 3, 2, 2)).astype(np.float16) for _ in range(count)]
    rows = np.array([4, 19, 7, 0, 11, 2])
    read, kept = (FeatureInputs(views, rows, torch.device("cpu")) for _ in range(2))
    kept.keep_on_device()
    places = np.array([5, 0, 3, 3])
    draws = read.draw(4, torch.Generator().manual_seed(1)) if count == 2 else None
    found = read.take(places, slice(None), draws)
    assert found.dtype == torch.float32
    assert torch.equal(kept.take(places, slice(None), draws), found)
    assert torch.equal(kept.take(places, slice(1, 3), draws), found[1:3])
    mirrored = np.zeros(4, bool) if draws is None else draws.mirrored.numpy()
    assert count == 1 or 0 < mirrored.sum() < 4
    for place, values, turned in zip(places, found.numpy(), mirrored, strict=True):
        np.testing.assert_array_equal(values, views[int(turned)][rows[place]])


def test_the_views_of_a_step_are_drawn_for_the_whole_step():
    both = FeatureInputs([np.zeros((3, 1))] * 2, np.arange(3), torch.device("cpu"))
    expected = draw(Augmentation(flip=True), 3, 1, 1, torch.Generator().manual_seed(5)).mirrored
    assert torch.equal(both.draw(3, torch.Generator().manual_seed(5)).mirrored, expected)
