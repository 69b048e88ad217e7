"""Matrix products on a processor by the faster of the two BLAS that are there anyway.

PyTorch's is MKL, which takes an AMD processor to two thirds of what it can do: 64 Gflop/s on a core of Zen 4 in
float32, where OpenBLAS, if that is what NumPy was built with, reaches 100. Products of few rows, and of narrow
transposed rows, gain nothing. On other processors, with another BLAS behind NumPy, and on a GPU, it is PyTorch's.

Sums of X X^T are SciPy's everywhere: its symmetric routine makes one triangle, in place.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from scipy.linalg.blas import dsyrk, ssyrk
from threadpoolctl import threadpool_info
from torch import Tensor

_FEWEST_ROWS, _FEWEST_ROWS_OF_FLIPPED, _WIDE = 20, 200, 2048  # measured on Zen 4
_STRIP_BYTES = 8 << 20  # of a product on its way to a sum
_MIRRORED = 256


def multiply(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left (m, k) @ right (k, n), real."""
    if out is None:
        out = left.new_empty(len(left), right.shape[1])
    if _by_numpy(left, right):
        np.matmul(left.numpy(), right.numpy(), out=out.numpy())
        return out
    return torch.mm(left, right, out=out)


def add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """target += left @ right, in strips where there is no routine that adds."""
    if not _by_numpy(left, right):
        target.addmm_(left, right)
        return
    width = max(1024, _STRIP_BYTES // (len(left) * target.itemsize))
    for start in range(0, target.shape[1], width):
        columns = slice(start, start + width)
        target[:, columns] += multiply(left, right[:, columns])


def add_squares(products: Tensor, values: Tensor) -> None:
    """products (n, n) += values @ values.T, on a processor in the lower triangle alone: see `complete`."""
    if products.device.type != "cpu":
        products.addmm_(values, values.T)
        return
    if not values.numel():
        return
    syrk = ssyrk if products.dtype == torch.float32 else dsyrk
    # Fortran's arrays are ours transposed, and so is the triangle.
    array = values.numpy()
    flipped = not array.flags.f_contiguous
    target = products.numpy().T
    syrk(1.0, array.T if flipped else array, beta=1.0, c=target, trans=int(flipped), lower=0, overwrite_c=1)


def complete(products: Tensor) -> None:
    """Make the upper triangle what the lower is, after the last of `add_squares`."""
    if products.device.type != "cpu":
        return
    for start in range(0, len(products), _MIRRORED):
        stop = min(start + _MIRRORED, len(products))
        products[:start, start:stop] = products[start:stop, :start].T
        own = products[start:stop, start:stop]
        own.copy_(own.tril() + own.tril(-1).T)


def _by_numpy(left: Tensor, right: Tensor) -> bool:
    if left.device.type != "cpu" or not prefers_numpy():
        return False
    flipped = right.stride(1) != 1 and len(right) < _WIDE
    return len(left) >= (_FEWEST_ROWS_OF_FLIPPED if flipped else _FEWEST_ROWS)


@functools.cache
def prefers_numpy() -> bool:
    """Whether NumPy's BLAS is OpenBLAS, PyTorch's is MKL, and the processor is one of AMD's."""
    behind_numpy = {library["internal_api"] for library in threadpool_info() if "numpy" in library["filepath"]}
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]  # torch's own
    about = Path("/proc/cpuinfo")
    is_amd = about.exists() and "AuthenticAMD" in about.read_text()
    return bool(mkl) and behind_numpy == {"openblas"} and is_amd
