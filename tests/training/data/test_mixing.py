"""Mixed images and labels are what the papers' formulas give, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featx.training.data.augment import augment, draw, parse_augmentation
from featx.training.data.mixing import blend, draw_mixes, mixed_cross_entropy
from featx.training.learning_rates import Rate
from featx.training.optimization.ema import TrainedWeights


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_second_image_is_mixed_and_the_others_are_left_alone():
    mixes = draw_mixes(0.2, 1.0, 4000, 32, generator())
    alone = mixes.shares == 1
    mixed = mixes.partners != torch.arange(4000)
    assert 0.45 < float(mixed.float().mean()) < 0.55
    assert not bool((alone & mixed).sum() > 40)  # a patch may be smaller than a pixel
    assert torch.equal(mixes.partners[~mixed], torch.arange(4000)[~mixed])
    assert bool((mixes.patches[~mixed] == 0).all())


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_shares_are_betas(alpha):
    mixes = draw_mixes(alpha, 0, 20_000, 32, generator(1))
    shares = mixes.shares[mixes.partners != torch.arange(20_000)].double()
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.04)
    assert bool((mixes.patches == 0).all())


def test_patches_have_the_area_that_the_labels_share():
    side = 32
    mixes = draw_mixes(0, 1.0, 5000, side, generator(2))
    left, top, right, bottom = mixes.patches.T
    assert float(mixes.patches.min()) == 0
    assert float(mixes.patches.max()) == side
    torch.testing.assert_close(mixes.shares, 1 - (right - left) * (bottom - top) / side**2)
    # Centres are spread evenly: one that lies near a corner has lost three quarters of its patch.
    assert 0.6 < float(mixes.shares[mixes.partners != torch.arange(5000)].mean()) < 0.75


def test_images_are_blended_pixel_by_pixel():
    images = torch.rand(12, 3, 8, 8, generator=generator(3))
    mixes = draw_mixes(1.0, 1.0, 12, 8, generator(4))
    found = blend(images, images[mixes.partners], mixes)
    assert found.is_contiguous(memory_format=torch.channels_last)
    patched = 0
    for place, image in enumerate(images):
        other = images[mixes.partners[place]]
        left, top, right, bottom = mixes.patches[place].int().tolist()
        if right > left and bottom > top:
            expected = image.clone()
            expected[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            patched += 1
        else:
            share = float(mixes.shares[place])
            expected = share * image + (1 - share) * other
        torch.testing.assert_close(found[place], expected)
    assert 2 <= patched <= 10


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_pytorchs_for_labels_with_shares(smoothing):
    logits = torch.randn(9, 5, generator=generator(5), requires_grad=True)
    labels, partners = (torch.randint(0, 5, (9,), generator=generator(seed)) for seed in (6, 7))
    shares = torch.rand(9, generator=generator(8))
    soft = shares[:, None] * F.one_hot(labels, 5) + (1 - shares)[:, None] * F.one_hot(partners, 5)
    expected = F.cross_entropy(logits, soft, label_smoothing=smoothing)
    found = mixed_cross_entropy(logits, labels, partners, shares, smoothing)
    torch.testing.assert_close(found, expected)


def test_what_is_mixed_in_has_its_own_mirroring_and_crop():
    how = parse_augmentation("flip,crop:0.5,cutmix,mixup:1")
    images = torch.randint(0, 256, (6, 3, 48, 48), generator=generator(9), dtype=torch.uint8)
    draws = draw(how, 6, 48, 32, generator(10))
    assert draws.mixes is not None
    whole = augment(images, how, draws, 32)
    rows = slice(2, 6)
    part = draws.mixes_of(rows)
    others = augment(images[part.partners], how, draws.of(part.partners), 32)
    torch.testing.assert_close(others, whole[part.partners], atol=1e-6, rtol=0)
    whole = blend(whole, whole[draws.mixes.partners], draws.mixes)
    mine = blend(augment(images[rows], how, draws.part(rows), 32), others, part)
    torch.testing.assert_close(mine, whole[rows], atol=1e-6, rtol=0)


def test_the_same_seed_draws_the_same():
    one, two = (draw_mixes(0.2, 1.0, 50, 32, generator(11)) for _ in range(2))
    other = draw_mixes(0.2, 1.0, 50, 32, generator(12))
    assert torch.equal(one.shares, two.shares)
    assert not torch.equal(one.shares, other.shares)
    assert np.array_equal(one.partners.numpy(), two.partners.numpy())


def test_an_average_holds_batchnorms_statistics_too():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    rates = [Rate(name, "all", p.numel(), 0.1) for name, p in network.named_parameters()]
    weights, memory = TrainedWeights(network, rates, 0.75), {n: t.clone() for n, t in network.state_dict().items()}
    for seed, memory_of_step in enumerate((0.1, 2 / 11, 0.75)):  # it grows: (1 + t) / (10 + t), in step 100 all of it
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator(seed)))
        network(torch.randn(8, 3, generator=generator(seed)))  # moves the statistics
        weights.step(seed if seed < 2 else 100)
        memory = {
            name: memory_of_step * old + (1 - memory_of_step) * network.state_dict()[name]
            for name, old in memory.items()
        }
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with weights.averaged():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, memory[name])
                assert not torch.equal(tensor, own[name]), name
    assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())
