"""Augmentation in batches against torchvision's functions, image by image, with the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from featx.errors import UsageError
from featx.training.data.augment import Augmentation, Draws, _recolour, augment, draw, parse_augmentation
from featx.training.optimization.optimizer import rate_factor


@pytest.fixture
def images():
    """Six smooth images of 48 x 48."""
    rough = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(rough, (48, 48), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mirroring_turns_half_of_the_images_round_and_nothing_else(images):
    how = Augmentation(flip=True)
    draws = draw(how, 6, 48, 40, generator(1))
    assert 0 < int(draws.mirrored.sum()) < 6
    found = augment(images, how, draws, 40)
    for image, mirrored, expected in zip(found, draws.mirrored, images[:, :, 4:44, 4:44], strict=True):
        torch.testing.assert_close(image, (expected.flip(2) if mirrored else expected) / 255)
    many = draw(how, 10_000, 48, 40, generator()).mirrored.float().mean()
    assert abs(float(many) - 0.5) < 0.02


def test_a_random_crop_is_torchvisions_crop_of_the_same_box(images):
    how = Augmentation(flip=True, crop=0.3)
    draws = draw(how, 6, 48, 32, generator(2))
    found = augment(images, how, draws, 32)
    for image, mirrored, box, source in zip(found, draws.mirrored, draws.boxes.int().tolist(), images, strict=True):
        left, top, width, height = box
        expected = V.resized_crop(source / 255, top, left, height, width, [32, 32], antialias=False)
        expected = expected.flip(2) if mirrored else expected
        # At the border the box's neighbours are seen here, and repeated edge pixels there.
        torch.testing.assert_close(image[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5, rtol=0)


def test_crops_lie_inside_and_are_spread_as_torchvisions(images):
    boxes = draw(Augmentation(crop=0.3), 20_000, 64, 56, generator(3)).boxes
    left, top, width, height = boxes.T
    assert bool(((left >= 0) & (top >= 0) & (left + width <= 64) & (top + height <= 64)).all())
    torch.manual_seed(0)
    from torchvision.transforms import RandomResizedCrop

    theirs = [RandomResizedCrop.get_params(torch.empty(3, 64, 64), [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    areas = np.array([h * w for _, _, h, w in theirs])
    ours = (width * height).numpy()
    for quantile in (0.1, 0.5, 0.9):
        assert np.quantile(ours, quantile) == pytest.approx(np.quantile(areas, quantile), rel=0.05)


def test_a_shift_moves_by_whole_pixels(images):
    how = Augmentation(shift=4)
    draws = draw(how, 6, 48, 48, generator(4))
    found = augment(images, how, draws, 48)
    for image, box, source in zip(found, draws.boxes.int().tolist(), images, strict=True):
        left, top = box[:2]
        assert -4 <= left <= 4
        assert -4 <= top <= 4
        padded = torch.nn.functional.pad(source[None] / 255, (4, 4, 4, 4), mode="replicate")[0]
        expected = padded[:, 4 + top : 52 + top, 4 + left : 52 + left]
        torch.testing.assert_close(image[:, 4:-4, 4:-4], expected[:, 4:-4, 4:-4], atol=1e-5, rtol=0)
    assert len({tuple(box) for box in draws.boxes.tolist()}) > 3


def test_an_elastic_distortion_is_torchvisions_with_the_same_field(images):
    how = Augmentation(elastic=1.5)
    draws = draw(how, 6, 48, 48, generator(5))
    assert draws.fields is not None
    torch.testing.assert_close(draws.fields.std(dim=(1, 2, 3)), torch.full((6,), 1.5))
    # Smooth: neighbours move alike.
    assert float((draws.fields[..., 1:] - draws.fields[..., :-1]).abs().max()) < 1.0
    found = augment(images, how, draws, 48)
    for image, field, source in zip(found, draws.fields, images, strict=True):
        displacement = field.permute(1, 2, 0)[None] * 2 / 48  # torchvision's: in units of half the image
        expected = V.elastic(source / 255, displacement)
        torch.testing.assert_close(image[:, 6:-6, 6:-6], expected[:, 6:-6, 6:-6], atol=2e-3, rtol=0)


def test_colours_change_as_torchvisions_do(images):
    factors = draw(Augmentation(jitter=0.4), 6, 48, 48, generator(6)).factors
    assert 0.6 <= float(factors.min()) < 0.9
    assert 1.1 < float(factors.max()) <= 1.4
    found = _recolour(images / 255, factors)
    for image, (brightness, contrast, saturation), source in zip(found, factors.tolist(), images / 255, strict=True):
        expected = V.adjust_brightness(source, brightness)
        expected = V.adjust_saturation(V.adjust_contrast(expected, contrast), saturation)
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_a_part_of_the_draws_changes_its_images_as_the_whole_does(images):
    how = parse_augmentation("flip,crop:0.5,jitter:0.2,elastic:1")
    draws = draw(how, 6, 48, 32, generator(7))
    whole = augment(images, how, draws, 32)
    for rows in (slice(0, 2), slice(2, 6)):
        torch.testing.assert_close(augment(images[rows], how, draws.part(rows), 32), whole[rows], atol=1e-6, rtol=0)


def test_without_augmentation_the_centre_is_taken(images):
    none = parse_augmentation("none")
    assert none.is_none
    found = augment(images, none, draw(none, 6, 48, 32, generator()), 32)
    torch.testing.assert_close(found, images[:, :, 8:40, 8:40] / 255)


@pytest.mark.parametrize(
    "text", ["flipp", "shift", "shift:0", "jitter:2", "crop:0", "flip:1", "flip,none", "elastic:x", ""]
)
def test_what_is_no_augmentation_is_refused(text):
    with pytest.raises(UsageError, match="is none of flip, crop"):
        parse_augmentation(text)


def test_draws_are_kept_apart_by_image():
    draws = draw(Augmentation(flip=True, crop=0.3), 4, 48, 32, generator(8))
    part = draws.part(slice(1, 3))
    assert isinstance(part, Draws)
    assert torch.equal(part.boxes, draws.boxes[1:3])
    assert torch.equal(part.mirrored, draws.mirrored[1:3])


def test_schedules_fall_as_they_say():
    assert [rate_factor("step", epoch, 9, 0) for epoch in (0, 2.9, 3, 6, 8.99)] == pytest.approx(
        [1, 1, 0.1, 0.01, 0.01]
    )
    assert rate_factor("constant", 5, 9, 0) == 1
    assert rate_factor("constant", 1, 9, 4) == 0.25
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), T_max=10)
    for epoch in range(10):
        assert rate_factor("cosine", epoch, 10, 0) == pytest.approx(cosine.get_last_lr()[0])
        cosine.optimizer.step()
        cosine.step()
