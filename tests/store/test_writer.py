"""No row is lost, doubled, misplaced or different, whatever happens at whichever call to the operating system.

Faults are put in place of the Nth call, for every N: an error the disk might give, or the death of the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_schema import fill, plan, write

from featx.errors import DiskError, FileFormatError, Interrupted, PlanMismatch
from featx.store.open import open_features
from featx.store.schema import partial_path
from featx.store.writer import FeatureWriter

CALLS = ("pwrite", "fdatasync", "fsync", "rename", "link", "posix_fallocate", "open")
BATCH = 2
KILLED = 137


def job(path: Path) -> None:
    """A small run: five rows in three blocks."""
    the_plan = plan()
    count = len(the_plan.paths)
    values = {
        s.name: (np.arange(count * int(np.prod(s.shape))).reshape(count, *s.shape) + 1).astype(s.dtype)
        for s in the_plan.layers
    }
    with FeatureWriter.open(path, the_plan) as writer:
        for first in writer.pending_blocks(BATCH):
            write(writer, first, values, BATCH)
        writer.finish()


class Faults:
    """Counts the writer's calls to the operating system and lets the Nth of them go wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[str, Callable[..., object], tuple], object],
                 at: int) -> None:  # fmt: skip
        self.count = 0
        for name in CALLS:
            real = getattr(os, name)

            def call(*args: object, _real: Callable[..., object] = real, _name: str = name) -> object:
                self.count += 1
                return fail(_name, _real, args) if self.count == at else _real(*args)

            monkeypatch.setattr(os, name, call)


def calls_in_all(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, lambda *_: None, 0)
        job(tmp_path / "count.h5")
    return faults.count


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The bytes of an undisturbed run."""
    (tmp_path / "undisturbed").mkdir()
    job(tmp_path / "undisturbed" / "f.h5")
    return (tmp_path / "undisturbed" / "f.h5").read_bytes()


def half_written(_name: str, real: Callable[..., object], args: tuple) -> object:
    """The disk takes half of what it is given: not an error, but a short write."""
    if real is os.pwrite:
        return real(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)], args[2])
    return real(*args)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_call_is_said_and_the_next_run_finishes_the_same_bytes(tmp_path, whole, code):
    total = calls_in_all(tmp_path)
    assert total > 30

    def fail(*_: object) -> object:
        raise OSError(code, os.strerror(code))

    for at in range(1, total + 1):
        folder = tmp_path / f"{code}-{at}"
        path = folder / "f.h5"
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, fail, at)
            with pytest.raises(DiskError, match=r"f\.h5"):
                job(path)
        if path.exists():  # the rename had happened: only the folder's own flush failed
            assert path.read_bytes() == whole, f"call {at}"
            continue
        job(path)
        assert path.read_bytes() == whole, f"call {at}"
        assert os.listdir(folder) == ["f.h5"], f"call {at}"


def test_death_at_any_call_costs_one_block_at_most_and_the_next_run_finishes_the_same_bytes(tmp_path, whole):
    total = calls_in_all(tmp_path)
    for before in (True, False):
        for at in range(1, total + 1):
            folder = tmp_path / f"{before}-{at}"
            path = folder / "f.h5"
            done_before = run_and_die(path, at, before=before)
            if path.exists():
                assert path.read_bytes() == whole
                continue
            assert rows_done(path) >= done_before - BATCH, f"call {at}"
            job(path)
            assert path.read_bytes() == whole, f"call {at}, {'before' if before else 'after'} it"


def run_and_die(path: Path, at: int, *, before: bool) -> int:
    """Run the job in a child that dies at its Nth call; how many rows it had handed over by then."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # the child must not return into pytest
        with pytest.MonkeyPatch.context() as patch:
            real_write_block = FeatureWriter.write_block

            def counted(writer: FeatureWriter, first: int, *args: object, **kwargs: object) -> None:
                real_write_block(writer, first, *args, **kwargs)
                os.write(write_end, b"%c" % len(kwargs["status"]))

            patch.setattr(FeatureWriter, "write_block", counted)

            def die(_name: str, real: Callable[..., object], args: tuple) -> object:
                if not before:
                    real(*args)
                os._exit(KILLED)

            Faults(patch, die, at)
            job(path)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        handed_over = sum(pipe.read())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    return handed_over


def rows_done(path: Path) -> int:
    if not partial_path(path).exists():
        return 0
    return int((open_features(partial_path(path), partial=True).status > 0).sum())


def test_short_writes_are_continued(tmp_path, whole, monkeypatch):
    for at in range(1, calls_in_all(tmp_path) + 1):
        path = tmp_path / f"short-{at}" / "f.h5"
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, half_written, at)
            job(path)
        assert path.read_bytes() == whole


def test_a_rows_bytes_are_flushed_before_its_status_is_written(tmp_path, monkeypatch):
    log: list[tuple[str, int]] = []
    with FeatureWriter.open(tmp_path / "f.h5", plan()) as writer:
        offset = writer._extents["images/status"].offset
        real_write, real_sync = os.pwrite, os.fdatasync
        monkeypatch.setattr(
            "featx.store.writer.os.pwrite",
            lambda fd, data, at: (log.append(("write", at)), real_write(fd, data, at))[1],
        )
        monkeypatch.setattr("featx.store.writer.os.fdatasync", lambda fd: (log.append(("sync", 0)), real_sync(fd))[1])
        values = {"fc7": np.ones((5, 6), np.float32), "conv5:pre": np.ones((5, 3, 2, 2), np.float32)}
        write(writer, 0, values, 2)
    assert [what for what, _ in log] == ["write"] * 9 + ["sync", "write"]
    assert log[-1] == ("write", offset)


def test_another_process_writing_the_file_is_told_apart_from_one_that_died(tmp_path):
    with FeatureWriter.open(tmp_path / "f.h5", plan()), pytest.raises(Interrupted, match="another featx") as caught:
        FeatureWriter.open(tmp_path / "f.h5", plan())
    assert caught.value.exit_status == 75
    FeatureWriter.open(tmp_path / "f.h5", plan()).close()


def test_a_partial_file_of_another_plan_is_kept_and_refused_with_the_difference(tmp_path):
    values = {"fc7": np.ones((5, 6), np.float32), "conv5:pre": np.ones((5, 3, 2, 2), np.float32)}
    with FeatureWriter.open(tmp_path / "f.h5", plan()) as writer:
        write(writer, 0, values, BATCH)
    before = partial_path(tmp_path / "f.h5").read_bytes()
    with pytest.raises(PlanMismatch, match=r"layers\.conv5:pre .*, now none"):
        FeatureWriter.open(tmp_path / "f.h5", plan(layers=1))
    assert partial_path(tmp_path / "f.h5").read_bytes() == before


def test_a_partial_file_that_is_no_features_file_is_not_touched(tmp_path):
    partial_path(tmp_path / "f.h5").write_bytes(b"precious")
    with pytest.raises(FileFormatError, match="damaged"):
        FeatureWriter.open(tmp_path / "f.h5", plan())
    assert partial_path(tmp_path / "f.h5").read_bytes() == b"precious"


def test_no_space_to_reserve_is_found_before_the_work_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("featx.store.writer.os.posix_fallocate", full)
    with pytest.raises(DiskError, match=r"No space left on device; free some space"):
        FeatureWriter.open(tmp_path / "f.h5", plan())
    assert list(tmp_path.iterdir()) == []


def test_a_finished_file_is_never_half_there_and_not_finished_while_rows_are_pending(tmp_path):
    with FeatureWriter.open(tmp_path / "f.h5", plan()) as writer:
        with pytest.raises(FileFormatError, match="5 rows are still to be done"):
            writer.finish()
        assert not (tmp_path / "f.h5").exists()


def test_failed_rows_are_pending_again_when_a_finished_file_is_reopened(tmp_path):
    values = fill(tmp_path / "f.h5", plan())
    before = (tmp_path / "f.h5").read_bytes()
    with FeatureWriter.open_failed(tmp_path / "f.h5", plan()) as writer:
        assert writer.status.tolist() == [1, 1, 1, 0, 1]
        assert (tmp_path / "f.h5").read_bytes() == before, "the finished file stays until there is a better one"
        assert not open_features(partial_path(tmp_path / "f.h5"), partial=True).complete
        write(writer, 2, values, 2)
        writer.finish()
    assert (tmp_path / "f.h5").read_bytes() == before


@pytest.mark.parametrize(
    ("first", "shape", "dtype"), [(0, (2, 7), "f4"), (4, (2, 6), "f4"), (-1, (2, 6), "f4"), (0, (2, 6), "f8")]
)
def test_rows_that_do_not_fit_are_refused_and_not_written_elsewhere(tmp_path, first, shape, dtype):
    with FeatureWriter.open(tmp_path / "f.h5", plan(layers=1)) as writer:
        before = partial_path(tmp_path / "f.h5").read_bytes()
        with pytest.raises(ValueError, match=r"fc7 takes|the file has 5 rows"):
            writer.write_block(
                first, {"fc7": np.zeros(shape, dtype)}, status=np.ones(2, np.uint8),
                sha256=np.zeros((2, 32), np.uint8), orientation=np.ones(2, np.uint8), decoder=np.zeros(2, np.uint8), reasons={},
            )  # fmt: skip
        assert partial_path(tmp_path / "f.h5").read_bytes() == before


def test_the_lock_is_the_kernels_and_goes_with_the_process(tmp_path):
    with FeatureWriter.open(tmp_path / "f.h5", plan()):
        descriptor = os.open(partial_path(tmp_path / "f.h5"), os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


def test_rows_that_are_done_are_never_written_again(tmp_path):
    values = fill(tmp_path / "f.h5", plan())
    with FeatureWriter.open_failed(tmp_path / "f.h5", plan()) as writer:
        wrong = {name: array[2:4] * 0 - 7 for name, array in values.items()}
        writer.write_block(
            2, wrong, status=np.array([2, 1], np.uint8), sha256=np.full((2, 32), 9, np.uint8),
            orientation=np.ones(2, np.uint8), decoder=np.zeros(2, np.uint8), reasons={0: "no such file"},
        )  # fmt: skip
        writer.finish()
    features = open_features(tmp_path / "f.h5")
    assert features.status.tolist() == [1] * 5
    np.testing.assert_array_equal(features["fc7"][2], values["fc7"][2])
    np.testing.assert_array_equal(features["fc7"][3], np.full(6, -7))
    assert features.sha256[2].tolist() == [2] * 32


def test_a_repacked_file_is_neither_retried_nor_harmed(tmp_path):
    fill(tmp_path / "f.h5", plan())
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        attributes, content = dict(file["features/fc7"].attrs), file["features/fc7"][:]
        del file["features/fc7"]
        file.create_dataset("features/fc7", data=content, chunks=(2, 6)).attrs.update(attributes)
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(FileFormatError, match="does not lie in it as featx left it"):
        FeatureWriter.open_failed(tmp_path / "f.h5", plan())
    assert (tmp_path / "f.h5").read_bytes() == before
    assert os.listdir(tmp_path) == ["f.h5"]


def test_a_retry_does_not_touch_the_unfinished_file_of_another_plan(tmp_path):
    fill(tmp_path / "f.h5", plan())
    with FeatureWriter.open(tmp_path / "g.h5", plan(layers=1)) as writer:
        write(writer, 0, {"fc7": np.ones((5, 6), np.float32)}, BATCH)
    partial_path(tmp_path / "g.h5").rename(partial_path(tmp_path / "f.h5"))
    before = partial_path(tmp_path / "f.h5").read_bytes()
    with pytest.raises(PlanMismatch):
        FeatureWriter.open_failed(tmp_path / "f.h5", plan())
    assert partial_path(tmp_path / "f.h5").read_bytes() == before


def test_a_file_that_appeared_meanwhile_is_not_overwritten(tmp_path):
    with FeatureWriter.open(tmp_path / "f.h5", plan()) as writer:
        values = {"fc7": np.ones((5, 6), np.float32), "conv5:pre": np.ones((5, 3, 2, 2), np.float32)}
        for first in writer.pending_blocks(BATCH):
            write(writer, first, values, BATCH)
        (tmp_path / "f.h5").write_bytes(b"precious")
        with pytest.raises(PlanMismatch, match="appeared during the run"):
            writer.finish()
    assert (tmp_path / "f.h5").read_bytes() == b"precious"
    assert open_features(partial_path(tmp_path / "f.h5"), partial=True).complete


def test_an_unfinished_file_that_is_deleted_during_the_run_is_noticed_at_the_next_block(tmp_path):
    with FeatureWriter.open(tmp_path / "f.h5", plan()) as writer:
        partial_path(tmp_path / "f.h5").unlink()
        values = {"fc7": np.ones((5, 6), np.float32), "conv5:pre": np.ones((5, 3, 2, 2), np.float32)}
        with pytest.raises(DiskError, match="was deleted or renamed during the run"):
            write(writer, 0, values, BATCH)


def test_a_broken_link_in_the_place_of_the_unfinished_file_is_an_error_and_no_endless_loop(tmp_path):
    partial_path(tmp_path / "f.h5").symlink_to("nowhere")
    with pytest.raises(DiskError, match="broken link"):
        FeatureWriter.open(tmp_path / "f.h5", plan())


def test_those_that_join_share_the_file_and_nobody_else_gets_in(tmp_path):
    path = tmp_path / "f.h5"
    with FeatureWriter.open(path, plan()) as first:
        assert FeatureWriter.join(path, plan()) is None, "before it is shared nobody joins"
        first.share()
        with FeatureWriter.join(path, plan()) as second:
            assert not first.hold_alone()
            with pytest.raises(Interrupted, match="another featx"):
                FeatureWriter.open(path, plan())
            job_of = {s.name: np.ones((len(plan().paths), *s.shape), s.dtype) for s in plan().layers}
            write(second, 0, job_of, BATCH)
            assert first.pending_blocks(BATCH)[0] == 0
            first.refresh()
            assert first.pending_blocks(BATCH)[0] == BATCH
        assert first.hold_alone()
        assert FeatureWriter.join(path, plan()) is None


def test_a_file_taken_by_another_run_meanwhile_is_not_shared(tmp_path):
    path = tmp_path / "f.h5"
    with FeatureWriter.open(path, plan()) as first:
        first.share()
        with FeatureWriter.join(path, plan()) as other:
            fcntl.flock(first._fd, fcntl.LOCK_UN)
            assert other.hold_alone()
            with pytest.raises(Interrupted, match="another featx"):
                first.hold_alone()
