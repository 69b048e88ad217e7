"""What becomes of the others when one process of a training ends."""

from __future__ import annotations

import fcntl
import os
import time

from conftest import write_photo
from ranks import finish, start


def test_a_refusal_of_the_first_alone_ends_all_at_once_each_with_one_line(tmp_path):
    for index in range(8):
        write_photo(tmp_path / "photos" / "ab"[index % 2] / f"{index}.jpg", index)
    (tmp_path / "run").mkdir()
    held = os.open(tmp_path / "run" / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)  # as another training in the same folder; only the first process looks
    words = [
        "-m",
        "featx",
        "finetune",
        str(tmp_path / "photos"),
        "-b",
        "alexnet-mini",
        "--lr",
        "fc",
        "--device",
        "cpu",
    ]
    started = time.monotonic()
    statuses, _, errors = finish(start(2, *words, "--val", "0", "-o", str(tmp_path / "run")))
    os.close(held)
    assert statuses == [75, 1], errors
    assert (
        errors[0]
        .splitlines()[-1]
        .endswith("is being written by another featx; wait for it, or choose another output")
    )
    assert errors[1].splitlines()[-1] == (
        "featx: another process of this training has ended; what it has said is the reason"
    )
    assert time.monotonic() - started < 100
