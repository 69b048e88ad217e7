"""Which part of a job a process does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.distributed.shards import Shard, parse_shard
from featx.errors import UsageError


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 40))
def test_shards_are_whole_blocks_that_make_up_all_rows(total, batch_size, count):
    parts = [Shard(index, count).rows(total, batch_size) for index in range(count)]
    assert [row for part in parts for row in part] == list(range(total))
    assert all(part.start % batch_size == 0 for part in parts if part)
    sizes = [-(-len(part) // batch_size) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/1", {}, (0, 1)),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "7"}, (7, 8)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "0"}, (0, 8)),
        ("auto/8", {"RANK": "5", "WORLD_SIZE": "6"}, (5, 8)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "3", "RANK": "1", "WORLD_SIZE": "2"}, (2, 4)),
        ("auto", {"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
    ],
)
def test_auto_asks_the_scheduler(text, environment, expected):
    shard = parse_shard(text, environment)
    assert (shard.index, shard.count) == expected
    assert shard.from_rank == (set(environment) & {"RANK", "SLURM_ARRAY_TASK_ID"} == {"RANK"})


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("8/8", {}),
        ("3", {}),
        ("1/2/3", {}),
        ("-1/2", {}),
        ("0/0", {}),
        ("", {}),
        ("auto", {}),
        ("auto/4", {}),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}),
        ("auto/4", {"SLURM_ARRAY_TASK_ID": "4"}),
    ],
)
def test_what_names_no_part_is_refused(text, environment):
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text, environment)


def test_an_index_that_is_no_number_is_named():
    with pytest.raises(UsageError, match="RANK is 'one'; it must be a whole number"):
        parse_shard("auto/4", {"RANK": "one"})
