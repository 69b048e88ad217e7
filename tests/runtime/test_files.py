"""What the operating system refuses is said in its words, whoever asked it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from featx.errors import DiskError, allow_more, bad_allowed
from featx.runtime.files import disk_errors, locked_folder


def test_a_librarys_paragraph_about_an_error_becomes_the_systems_words():
    with pytest.raises(DiskError, match=r"^f\.h5: Permission denied$"), disk_errors(Path("f.h5")):
        raise OSError(
            errno.EACCES, "Unable to synchronously create file (unable to open file: name = 'f.h5', errno = 13)"
        )
    with pytest.raises(DiskError, match=r"^f\.h5: a broken link$"), disk_errors(Path("f.h5")):
        raise OSError(errno.ENOENT, "a broken link")
    with pytest.raises(DiskError, match=r"^f\.h5: torn$"), disk_errors(Path("f.h5")):
        raise OSError("torn")


def test_what_a_killed_process_had_begun_is_removed_where_it_held_the_lock(tmp_path):
    ours = [f"checkpoint.safetensors.{'0a' * 8}.partial", ".tmpAb3xYz", f"snapshots/e.{'f' * 16}.partial"]
    users = ["notes.partial", ".tmp", "model.safetensors", ".tmpfolder1"]
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    for name in ours + users:
        (tmp_path / "run" / name).write_bytes(b"x")
    with locked_folder(tmp_path / "run"):  # nobody of ours was here before
        assert all((tmp_path / "run" / name).exists() for name in ours + users)
    with locked_folder(tmp_path / "run"):
        assert not any((tmp_path / "run" / name).exists() for name in ours)
        assert all((tmp_path / "run" / name).exists() for name in users)


@pytest.mark.parametrize("images", [1, 7, 23, 100, 999])
def test_what_a_refusal_advises_is_enough(images):
    for bad in range(1, images + 1):
        share = int(allow_more(bad, images).split()[1].rstrip("%")) / 100
        assert bad <= bad_allowed(share, images) <= bad + images / 100 + 1
