"""File systems that cannot do everything, streams that are closed, limits on memory."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_photo

from featx.commands.extract import extract_features
from featx.options.extraction import ExtractConfig
from featx.runtime import files
from featx.runtime.files import new_file_beside, replacing
from featx.runtime.memory import _left_by_limits

ERRNOS = [errno.EPERM, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        write_photo(folder / f"{number}.jpg", number)
    return folder


def extract(pictures: Path, out: Path) -> bytes:
    chosen = ExtractConfig(
        backbone="squeezenet1_1", layers="features.3", weights="random:0", pool="avg", device="cpu"
    )
    extract_features(pictures, out, chosen)
    return out.read_bytes()


@pytest.fixture(scope="module")
def expected(pictures, tmp_path_factory) -> bytes:
    return extract(pictures, tmp_path_factory.mktemp("expected") / "f.h5")


@pytest.mark.parametrize("number", ERRNOS)
@pytest.mark.parametrize("call", ["link", "flock", "posix_fallocate", "fsync"])
def test_a_file_system_that_cannot_do_something_gets_the_same_file_and_a_note(
    call, number, pictures, expected, tmp_path, monkeypatch, caplog
):
    def refuse(*_arguments, **_named):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl if call == "flock" else os, call, refuse)
    monkeypatch.setattr(files, "_said", set())
    with caplog.at_level(logging.WARNING, "featx"):
        assert extract(pictures, tmp_path / "f.h5") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.h5"]
    if call != "posix_fallocate":
        assert len([record for record in caplog.records if "does not support" in record.getMessage()]) == 1


def test_another_error_is_not_taken_for_something_that_cannot_be_done(pictures, tmp_path, monkeypatch):
    def refuse(*_arguments, **_named):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(Exception, match="Input/output error"):
        extract(pictures, tmp_path / "f.h5")


def test_temporary_names_cannot_be_foreseen_and_follow_no_link(tmp_path):
    names = {new_file_beside(tmp_path / "head.safetensors", ".partial").name for _ in range(50)}
    assert len(names) == 50
    target = tmp_path / "somebody's"
    target.write_text("precious")
    with replacing(tmp_path / "out.txt") as partial:
        assert stat.S_ISREG(partial.lstat().st_mode)
        partial.write_text("ours")
    assert (tmp_path / "out.txt").read_text() == "ours"
    assert target.read_text() == "precious"
    long = tmp_path / ("x" * 250)
    with replacing(long) as partial:
        partial.write_text("a name of 250 letters")
    assert long.exists()


@pytest.mark.parametrize(
    "closed", [">&- 2>&- <&-", *(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-", "<&-"))]
)
def test_closed_streams_are_dev_null(closed, pictures, expected, tmp_path):
    out = tmp_path / "f.h5"
    command = (
        f"{sys.executable} -m featx extract {pictures} -b squeezenet1_1 -l features.3 -w random:0 --pool avg "
        f"--device cpu -o {out} {closed}"
    )
    done = subprocess.run(["sh", "-c", command], check=False)
    assert done.returncode == 0
    assert out.read_bytes()[:8] == expected[:8]
    assert len(out.read_bytes()) == len(expected)


def test_the_limits_of_all_control_groups_above_count(tmp_path):
    root = tmp_path / "cgroup"
    for folder, limit, used in (("job", "1000", "300"), ("job/step", "max", "200"), ("", "5000", "900")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "memory.max").write_text(f"{limit}\n")
        (root / folder / "memory.current").write_text(f"{used}\n")
    groups = tmp_path / "self"
    groups.write_text("0::/job/step\n")
    assert min(_left_by_limits(root, groups)[:2]) == 700
    old = root / "memory" / "slurm"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("400\n")
    (old / "memory.usage_in_bytes").write_text("100\n")
    groups.write_text("4:memory:/slurm\n3:cpu:/slurm\n")
    assert _left_by_limits(root, groups)[0] == 300
