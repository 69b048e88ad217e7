"""Matrix products are right whichever library makes them, and however their factors lie in memory."""

from __future__ import annotations

import pytest
import torch

from featx.heads.solver.linear_algebra import matmul as blas

LAYOUTS = {
    "rows": lambda values: values.contiguous(),
    "columns": lambda values: values.T.contiguous().T,
    "part of wider rows": lambda values: torch.cat([values, values], 1)[:, : values.shape[1]],
    "every other row": lambda values: values.repeat_interleave(2, 0)[::2],
}


@pytest.fixture(params=[True, False], ids=["numpy", "pytorch"])
def library(request, monkeypatch):
    monkeypatch.setattr(blas, "prefers_numpy", lambda: request.param)


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tolerance(dtype: torch.dtype, terms: int) -> float:
    return terms * torch.finfo(dtype).eps


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 19, 20, 230])
def test_a_product_is_that_of_plain_sums(rows, dtype, layout):
    left, right = values(rows, 70, dtype=dtype), LAYOUTS[layout](values(70, 3000, dtype=dtype, seed=1))
    expected = torch.einsum("mk,kn->mn", left.double(), right.double())
    found = blas.multiply(LAYOUTS[layout](left), right)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, rtol=0, atol=tolerance(dtype, 70 * 4))
    wide = torch.full((rows, 3010), 7.0, dtype=dtype)
    assert blas.multiply(left, right, out=wide[:, 5:3005]).data_ptr() == wide[:, 5:3005].data_ptr()
    assert torch.allclose(wide[:, 5:3005].double(), expected, rtol=0, atol=tolerance(dtype, 70 * 4))
    assert bool((wide[:, :5] == 7).all())
    assert bool((wide[:, 3005:] == 7).all())


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("rows", [3, 40])
def test_a_product_is_added_strip_by_strip(rows, monkeypatch):
    monkeypatch.setattr(blas, "_STRIP_BYTES", 4)
    target, left, right = values(rows, 2600, seed=2), values(rows, 50), values(50, 2500, seed=1)
    before = target.double()
    blas.add_product(target[:, 50:2550], left, right)
    before[:, 50:2550] += left.double() @ right.double()
    assert torch.allclose(target.double(), before, rtol=0, atol=tolerance(torch.float32, 300))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "terms"), [(0, 3), (3, 0), (1, 5), (255, 40), (256, 1), (600, 30)])
def test_squares_are_summed_in_place(size, terms, dtype, layout):
    products = torch.zeros(size, size, dtype=dtype)
    expected = torch.zeros(size, size, dtype=torch.float64)
    for seed in range(3):
        part = values(size, terms, dtype=dtype, seed=seed)
        blas.add_squares(products, LAYOUTS[layout](part))
        expected += part.double() @ part.double().T
    blas.complete(products)
    assert torch.equal(products, products.T)
    assert torch.allclose(products.double(), expected, rtol=0, atol=tolerance(dtype, 12 * terms + 1))


@pytest.mark.parametrize("behind_numpy", ["mkl", "blis"])
def test_products_stay_with_pytorch_where_numpy_was_built_with_another_library(behind_numpy, monkeypatch):
    blas.prefers_numpy.cache_clear()
    libraries = [{"internal_api": behind_numpy, "filepath": "/site-packages/numpy.libs/lib.so"}]
    monkeypatch.setattr(blas, "threadpool_info", lambda: libraries)
    try:
        assert not blas.prefers_numpy()
    finally:
        blas.prefers_numpy.cache_clear()
