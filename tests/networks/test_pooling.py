"""Pooling against its definition, window by window."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import UsageError
from featx.extraction.reference import pool_plainly
from featx.networks.pooling import parse_pooling


@given(
    st.sampled_from(["none", "avg", "max", "flatten", "spp:1", "spp:1,2,4", "spp:3,5"]),
    st.integers(1, 4), st.integers(1, 14), st.integers(1, 14),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_pooling_a_batch_is_pooling_each_map_by_the_definition(spec, channels, height, width):
    maps = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(height * 20 + width))
    pooling = parse_pooling(spec)
    pooled = pooling(maps)
    expected = torch.stack([pool_plainly(one, spec) for one in maps])
    assert torch.allclose(pooled, expected, atol=1e-6, rtol=0)
    assert tuple(pooled.shape[1:]) == pooling.shape((channels, height, width))
    assert pooling.spec == spec


def test_vectors_pass_unchanged():
    vectors = torch.randn(4, 9)
    for spec in ("none", "avg", "max", "flatten", "spp:1,2"):
        assert torch.equal(parse_pooling(spec)(vectors), vectors)
        assert parse_pooling(spec).shape((9,)) == (9,)


@pytest.mark.parametrize("spec", ["median", "cls+max", "spp", "spp:", "spp:0", "spp:1,", "spp:2;4", "AVG"])
def test_what_is_no_pooling_is_refused(spec):
    with pytest.raises(UsageError, match="none, avg, max, flatten or a pyramid"):
        parse_pooling(spec)
