"""A features file as a torch Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from featx.store.reader import Features


class FeatureDataset(Dataset[tuple[Tensor, int]]):
    """(features of one image, its label) for the given rows of one layer.

    Each DataLoader worker opens and maps the file for itself: no handle crosses a process.
    """

    def __init__(self, features: Features, layer: str, rows: npt.NDArray[np.intp]) -> None:
        self.features = features
        self.layer = layer
        self.rows = rows
        self._values: npt.NDArray[np.floating] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_values": None}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._values is None:
            self._values = self.features[self.layer]
        row = self.rows[index]
        return torch.from_numpy(np.array(self._values[row])), int(self.features.labels[row])
