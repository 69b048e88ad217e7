"""The device, and what float32 means on it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import clusters

from featx.heads.selection.search import fit_heads
from featx.heads.solver.solver import solve
from featx.runtime.device import strict_precision
from featx.runtime.progress import Reporter

SWITCHES = [
    (torch.backends.cuda.matmul, "fp32_precision"),
    (torch.backends.cudnn.conv, "fp32_precision"),
    (torch.backends.cudnn, "enabled"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
]


def values() -> list[object]:
    return [getattr(where, name) for where, name in SWITCHES]


@pytest.fixture
def switches() -> Iterator[None]:
    """What a test changes is put back."""
    before = values()
    yield
    for (where, name), value in zip(SWITCHES, before, strict=True):
        setattr(where, name, value)


@pytest.mark.parametrize("conv", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("benchmark", [False, True])
@pytest.mark.usefixtures("switches")
def test_a_precision_is_set_nests_and_leaves_everything_as_it_was(conv, benchmark):
    """Whatever the program around it has chosen: PyTorch refuses mixtures of its older and newer switches."""
    torch.backends.cudnn.conv.fp32_precision = conv
    torch.backends.cudnn.benchmark = benchmark
    before = values()
    with strict_precision("tf32"):
        assert values() == ["tf32", "tf32", True, False, True]
        with strict_precision("fp32"):
            assert values() == ["ieee", "ieee", True, False, True]
        assert values() == ["tf32", "tf32", True, False, True]
    assert values() == before
    with pytest.raises(KeyError), strict_precision():
        raise KeyError
    assert values() == before


class Watched(np.ndarray):
    """Features that note how products are rounded when they are looked at."""

    seen: list[str] = []  # noqa: RUF012  # of the class on purpose: slices of an array are other objects

    @property
    def size(self) -> int:
        Watched.seen.append(torch.backends.cuda.matmul.fp32_precision)
        return int(np.prod(self.shape))


class Watcher(Reporter):
    def advance(self, steps: int) -> None:
        Watched.seen.append(torch.backends.cuda.matmul.fp32_precision)


@pytest.mark.usefixtures("switches")
def test_heads_are_solved_in_strict_float32():
    """What products in TF32 prove is nothing."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    X, y = clusters(per_class=6, classes=2, width=3)
    Watched.seen.clear()
    solve("svm", X.view(Watched), y, 1.0)
    assert set(Watched.seen) == {"ieee"}
    Watched.seen.clear()
    fit_heads(
        "svm", X, np.arange(len(X)), y, ["a", "b"], c=None, folds=2, seed=0, normalize="none",
        device=torch.device("cpu"), memory_bytes=1 << 28, reporter=Watcher(),
    )  # fmt: skip
    assert set(Watched.seen) == {"ieee"}
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
