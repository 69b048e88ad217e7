"""Which images have nearly the same features: exact, over all pairs, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.heads.splits import Rows

_BYTES_AT_ONCE = 64 << 20  # of features in float32, and of cosines
MOST_PAIRS = 1_000_000


@dataclass(frozen=True)
class Neighbourhood:
    """Cosines of n images' features, their mean taken from each first.

    Attributes:
        pairs: (P, 2) positions i < j of images as similar as asked for, the most similar first; of more than
            `MOST_PAIRS` only so many.
        cosines: (P,) of the pairs.
        nearest: (n, k) positions of the nearest others, the nearest first.
        similarities: (n, k) their cosines.
    """

    pairs: npt.NDArray[np.intp]
    cosines: npt.NDArray[np.float32]
    nearest: npt.NDArray[np.intp]
    similarities: npt.NDArray[np.float32]


def neighbourhood(
    values: npt.NDArray[Any],
    rows: Rows,
    threshold: float,
    k: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda done: None,
) -> Neighbourhood:
    """Compare every two of some rows of features (N, D), which may stay on the disk; n^2 D multiplications.

    Rows that equal the mean, as all do where there is only one, are similar to none.
    """
    count, width = len(rows), values.shape[1]
    step = max(1, min(4096, _BYTES_AT_ONCE // (4 * max(width, 1))))
    blocks = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    total = np.zeros(width)
    for part in blocks:
        total += values[rows[part]].sum(axis=0, dtype=np.float64)
    centre = (total / max(count, 1)).astype(np.float32)

    def unit_rows(part: slice) -> Tensor:
        block = torch.from_numpy(np.asarray(values[rows[part]], np.float32) - centre).to(device)
        lengths = block.norm(dim=1, keepdim=True)
        return block / torch.where(lengths > 0, lengths, 1.0)

    k = max(0, min(k, count - 1))
    nearest, similarities = np.zeros((count, k), np.intp), np.zeros((count, k), np.float32)
    pairs, cosines = [np.zeros((0, 2), np.intp)], [np.zeros(0, np.float32)]
    kept = [unit_rows(part) for part in blocks] if 4 * count * width <= 32 * _BYTES_AT_ONCE else None
    for number, part in enumerate(blocks):
        own = kept[number] if kept else unit_rows(part)
        best = torch.full((len(own), k), -2.0, device=device)
        places = torch.zeros((len(own), k), dtype=torch.int64, device=device)
        for other, theirs in enumerate(blocks):
            found = own @ (kept[other] if kept else unit_rows(theirs)).T
            if other == number:
                found.fill_diagonal_(-2.0)
            if other >= number:
                first, second = torch.nonzero(found >= threshold, as_tuple=True)
                later = second + theirs.start > first + part.start
                first, second = first[later], second[later]
                both = torch.stack([first + part.start, second + theirs.start], 1)
                pairs.append(both.cpu().numpy().astype(np.intp))
                cosines.append(found[first, second].cpu().numpy())
                if sum(map(len, pairs)) > 2 * MOST_PAIRS:
                    pairs, cosines = _most_similar(pairs, cosines)
            here = torch.arange(theirs.start, theirs.stop, device=device).expand(len(own), -1)
            best, order = torch.cat([best, found], 1).topk(k, dim=1)
            places = torch.cat([places, here], 1).gather(1, order)
        nearest[part], similarities[part] = places.cpu().numpy(), best.cpu().numpy()
        advance(len(own))
    pairs, cosines = _most_similar(pairs, cosines)
    return Neighbourhood(pairs[0], cosines[0].clip(-1, 1), nearest, similarities.clip(-1, 1))


def _most_similar(
    pairs: list[npt.NDArray[np.intp]], cosines: list[npt.NDArray[np.float32]]
) -> tuple[list[npt.NDArray[np.intp]], list[npt.NDArray[np.float32]]]:
    both, similar = np.concatenate(pairs), np.concatenate(cosines)
    order = np.argsort(-similar, kind="stable")[:MOST_PAIRS]
    return [both[order]], [similar[order]]
