"""Which part of a job a process does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import write_photo
from hypothesis import given
from hypothesis import strategies as st

from featx.commands.extract import extract_features
from featx.commands.inspect import inspect_file
from featx.commands.merge import merge_shards
from featx.distributed.shards import Shard, parse_shard
from featx.errors import UsageError
from featx.options.extraction import ExtractConfig
from featx.store.open import open_features


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


def test_more_shards_than_blocks_are_empty_files_that_merge_to_the_same_bytes(tmp_path):
    for number in range(5):
        write_photo(tmp_path / "photos" / f"{number}.jpg", number)
    chosen = ExtractConfig(backbone="squeezenet1_1", layers="features.3", weights="random:0", pool="avg", device="cpu",
                           batch_size=4)  # fmt: skip
    for index in range(4):
        extract_features(tmp_path / "photos", tmp_path / "parts" / "f.h5", replace(chosen, shard=f"{index}/4"))
    counts = [len(open_features(path)) for path in sorted((tmp_path / "parts").iterdir())]
    assert sorted(counts) == [0, 0, 1, 4]
    merge_shards([tmp_path / "parts"], tmp_path / "all.h5")
    extract_features(tmp_path / "photos", tmp_path / "one.h5", chosen)
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()
    empty = next(path for path in sorted((tmp_path / "parts").iterdir()) if not len(open_features(path)))
    assert "0 images, 0 done" in str(inspect_file(empty))
    x, y = open_features(empty).xy()
    assert x.shape == (0, 128)
    assert len(y) == 0
