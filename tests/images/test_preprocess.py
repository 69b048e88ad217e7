"""Our pixels are torchvision's pixels, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
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


HAND = Preprocess(64, 48, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
SIZES = [(80, 64), (64, 80), (49, 200), (64, 64), (301, 97)]


def torchvision_says(steps, image, how=HAND):
    """The views as tensors, one below the other as ours are."""
    made = T.Compose(steps)(image)
    views = made if isinstance(made, tuple) else (made,)
    finish = T.Compose([T.ToTensor(), T.Normalize(how.mean, how.std)])
    return torch.cat([finish(view) for view in views], dim=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"views": "corners"}, [T.Resize(64), T.FiveCrop(48)]),
        ({"views": "ten"}, [T.Resize(64), T.TenCrop(48)]),
        ({"grey": True}, [T.Resize(64), T.CenterCrop(48), T.Grayscale(3)]),
        ({"interpolation": "lanczos"}, [T.Resize(64, T.InterpolationMode.LANCZOS), T.CenterCrop(48)]),
        ({"interpolation": "box"}, [T.Resize(64, T.InterpolationMode.BOX), T.CenterCrop(48)]),
        ({"interpolation": "nearest"}, [T.Resize(64, T.InterpolationMode.NEAREST), T.CenterCrop(48)]),
        ({"fit": "pad"}, [lambda image: ImageOps.pad(image, (48, 48), Image.Resampling.BILINEAR)]),
        (
            {"fit": "pad", "pad_color": "255,0,10", "interpolation": "bicubic"},
            [lambda image: ImageOps.pad(image, (48, 48), Image.Resampling.BICUBIC, (255, 0, 10))],
        ),
        (
            {"fit": "pad", "pad_color": "mean"},
            [lambda image: ImageOps.pad(image, (48, 48), Image.Resampling.BILINEAR, (128, 102, 76))],
        ),
        ({"fit": "squash"}, [T.Resize((48, 48))]),
    ],
)
def test_what_is_asked_for_by_hand_is_what_torchvision_and_pillow_make(size, options, steps):
    ours = HAND.overridden(**options)
    assert torch.equal(normalised(ours, noise(*size)), torchvision_says(steps, noise(*size)))
    assert Preprocess.from_values(json.loads(json.dumps(ours.values()))) == ours


def test_means_and_deviations_by_hand_take_the_place_of_the_weights_own():
    ours = ALEXNET.overridden(mean="0.1,0.2,0.3", std=0.5)
    assert (ours.mean, ours.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert (ours.resize, ours.crop, ours.interpolation) == (ALEXNET.resize, ALEXNET.crop, ALEXNET.interpolation)


def test_corners_of_an_image_that_is_smaller_than_the_crop_are_in_a_black_border():
    small = Preprocess(20, 30, "bilinear", (0, 0, 0), (1, 1, 1), views="corners")
    image = Image.new("RGB", (40, 20), (255, 255, 255))  # of 20 rows and a crop of 30
    views = small.pixels(image).reshape(3, 5, 30, 30)
    assert (views[:, :, :5] == 0).all()
    assert (views[:, :, 5:25] == 255).all()
    assert (views[:, :, 25:] == 0).all()


def test_a_mirrored_image_is_mirrored_with_its_border():
    image = noise(80, 40)
    plain, turned = (
        HAND.overridden(fit="pad", pad_color="9", mirror=mirror).pixels(image) for mirror in (False, True)
    )
    assert np.array_equal(turned, plain[:, :, ::-1])
    assert not np.array_equal(turned, plain)


def test_an_image_of_one_row_is_padded_to_a_line():
    pixels = HAND.overridden(fit="pad", pad_color="7").pixels(Image.new("RGB", (4000, 1), (200, 200, 200)))
    assert (pixels == 200).sum() == 3 * 48
    assert (pixels == 7).sum() == 3 * 48 * 47


def test_how_a_run_prepares_its_images_is_kept_where_nothing_else_is_asked_for():
    run = HAND.overridden(fit="pad", pad_color="9", grey=True)
    assert run.overridden() == run
    squashed = HAND.overridden(squash=True)
    assert squashed.overridden() == squashed
    assert squashed.overridden(fit="crop") == HAND


def test_values_that_older_versions_did_not_know_are_left_out_where_they_are_not_used():
    assert set(HAND.values()) == {"resize", "crop", "interpolation", "mean", "std", "squash", "mirror"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "123.7,116.8,103.9"}, "levels of 0 to 255: divide by 255"),
        ({"mean": "0.5,0.5"}, "a number for each colour"),
        ({"std": "0"}, "from 1e-06 to 1"),
        ({"std": "nan"}, "from 1e-06 to 1"),
        ({"pad_color": "0,0,300", "fit": "pad"}, "from 0 to 255"),
        ({"pad_color": "red", "fit": "pad"}, "a number for each colour"),
        ({"pad_color": "9"}, "add --fit pad"),
        ({"fit": "pad", "resize": 80}, "leave out --resize"),
        ({"views": "twelve"}, "choose from center, corners, ten"),
        ({"interpolation": "cubic"}, "choose from bilinear, bicubic"),
        ({"fit": "squash", "views": "ten"}, "leaves none to cut"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        HAND.overridden(**options)
