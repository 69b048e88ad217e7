"""Our pixels are torchvision's pixels, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as T
from torchvision.models import AlexNet_Weights, EfficientNet_B0_Weights, Inception_V3_Weights, VGG16_Weights

from featx.errors import UsageError
from featx.images.preprocess import Preprocess, TooElongated
from featx.networks.registry import default_preprocessing

ALEXNET = Preprocess.from_values(default_preprocessing("alexnet"))


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def normalised(preprocess: Preprocess, image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(preprocess.pixels(image)).float().div(255)
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    return (pixels - mean[:, None, None]) / std[:, None, None]


@given(st.integers(1, 600), st.integers(1, 600))
@settings(max_examples=60, deadline=None)
def test_any_size_gives_the_tensor_torchvisions_weights_give(width, height):
    image = noise(width, height)
    try:
        ours = normalised(ALEXNET, image)
    except TooElongated:
        assert max(width, height) / min(width, height) * 256**2 > 1 << 26
        return
    assert torch.equal(ours, AlexNet_Weights.DEFAULT.transforms()(image))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vgg16", VGG16_Weights.IMAGENET1K_V1),
        ("inception_v3", Inception_V3_Weights.IMAGENET1K_V1),
        ("efficientnet_b0", EfficientNet_B0_Weights.IMAGENET1K_V1),  # bicubic
    ],
)
def test_each_backbone_has_its_own_weights_preprocessing(name, weights):
    ours = Preprocess.from_values(default_preprocessing(name, weights.name))
    image = noise(500, 375)
    assert torch.equal(normalised(ours, image), weights.transforms()(image))


def test_squash_is_torchvisions_resize_to_a_square():
    squashed = ALEXNET.overridden(resize=None, crop=128, squash=True)
    image = noise(300, 200)
    expected = np.asarray(T.Resize((128, 128))(image)).transpose(2, 0, 1)
    assert np.array_equal(squashed.pixels(image), expected)


def test_a_larger_crop_keeps_the_share_of_the_image_that_is_seen():
    changed = ALEXNET.overridden(resize=None, crop=448, squash=False)
    assert (changed.resize, changed.crop) == (512, 448)


def test_a_crop_larger_than_an_explicit_resize_is_refused():
    with pytest.raises(UsageError, match="--crop 300 is larger than --resize 256"):
        ALEXNET.overridden(resize=256, crop=300, squash=False)


def test_stored_values_make_the_same_preprocessing_again():
    assert Preprocess.from_values(ALEXNET.values()) == ALEXNET
