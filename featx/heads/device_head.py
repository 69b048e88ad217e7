"""A head where the features are: scores without carrying the features to the processor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.errors import FeaturesMismatch
from featx.heads.linear_head import LinearHead

BLOCK_BYTES = 256 << 20  # of float64 values at a time


class HeadOnDevice:
    """`LinearHead.scores` in the device's own float64."""

    def __init__(self, head: LinearHead, device: torch.device) -> None:
        self._weights = torch.from_numpy(head.weights).to(device)
        self._bias = torch.from_numpy(head.bias).to(device)
        self._unit_rows, self._layer = head.normalize == "l2", head.layer

    def __call__(self, features: Tensor) -> Tensor:
        """(n, ...) -> decision values (n, K) float64; NaN of a row that holds NaN.

        Raises:
            FeaturesMismatch: rows of another length than the head's.
        """
        rows = features.flatten(1).double()
        if rows.shape[1] != self._weights.shape[1]:
            raise FeaturesMismatch(
                f"the head was fitted on rows of {self._weights.shape[1]} values ({self._layer}), got {rows.shape[1]}"
            )
        if self._unit_rows:
            lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            rows = rows / lengths.where(lengths != 0, 1.0)
        return torch.addmm(self._bias, rows, self._weights.T)

    def of_rows(self, values: Tensor, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """The scores (n, K) of some rows of values (N, D), in blocks."""
        places, step = torch.from_numpy(rows).to(values.device), max(1, BLOCK_BYTES // (8 * values.shape[1]))
        return np.concatenate([self(values[part]).cpu().numpy() for part in torch.split(places, step)])
