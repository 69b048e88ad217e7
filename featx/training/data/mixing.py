"""Two training images become one, and so do their labels: mixup (all pixels) and CutMix (a patch).

Sources:
    mixup: Zhang, Cisse, Dauphin & Lopez-Paz, ICLR 2018. CutMix: Yun et al., ICCV 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featx.runtime.device import upload


@dataclass(frozen=True)
class Mixes:
    """What becomes of the B images of a step; every second one is left alone.

    Attributes:
        partners: (B,) int64, the place in the step of the image that is mixed in; its own where it is left alone.
        shares: (B,) of its own image in the result, 1 where it is left alone.
        patches: (B, 4) left, top, right, bottom in pixels of the patch that is the partner's; empty: all pixels mix.
    """

    partners: Tensor
    shares: Tensor
    patches: Tensor

    def part(self, rows: slice) -> Mixes:
        return Mixes(self.partners[rows], self.shares[rows], self.patches[rows])


def draw_mixes(mixup: float, cutmix: float, count: int, side: int, generator: torch.Generator) -> Mixes:
    """Choose for `count` images of side x side pixels.

    Args:
        mixup, cutmix: shares come from Beta(alpha, alpha) of these alphas; 0: not done. Of both, an image has one.
    """
    numpy = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
    mixed = numpy.random(count) < 0.5
    partners = np.where(mixed, numpy.permutation(count), np.arange(count))
    cut = numpy.random(count) < (0.5 if mixup and cutmix else float(bool(cutmix)))
    shares = np.where(cut, numpy.beta(cutmix or 1, cutmix or 1, count), numpy.beta(mixup or 1, mixup or 1, count))
    # The patch has the partner's share of the area, but for what lies outside; then it counts for what is inside.
    half = 0.5 * side * np.sqrt(1 - shares)[:, None]
    centre = numpy.random((count, 2)) * side
    corners = np.concatenate([centre - half, centre + half], 1).round().clip(0, side)
    corners[~(mixed & cut)] = 0
    inside = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    shares = np.where(cut, 1 - inside / side**2, shares)
    shares[~mixed] = 1
    return Mixes(torch.from_numpy(partners), torch.from_numpy(shares).float(), torch.from_numpy(corners).float())


def blend(images: Tensor, partners: Tensor, mixes: Mixes) -> Tensor:
    """(B, 3, S, S) of images and of what is mixed into each."""
    device, side = images.device, images.shape[-1]
    places = torch.arange(side, device=device)
    left, top, right, bottom = upload(mixes.patches, device).T[:, :, None, None]
    across, down = places[None, None, :], places[None, :, None]
    patch = (across >= left) & (across < right) & (down >= top) & (down < bottom)
    cut = (right > left) & (bottom > top)
    own = torch.where(cut, (~patch).float(), upload(mixes.shares, device)[:, None, None])
    return torch.lerp(partners, images, own[:, None]).contiguous(memory_format=torch.channels_last)


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, partners: Tensor, shares: Tensor, label_smoothing: float
) -> Tensor:
    """The mean over images of the losses for both labels, each with its share.

    Args:
        labels, partners: (B,) of the images and of what is mixed into them.
    """
    own, other = (
        F.cross_entropy(logits, of, label_smoothing=label_smoothing, reduction="none") for of in (labels, partners)
    )
    return torch.lerp(other, own, shares).mean()
