"""Fill a features file so that neither a kill nor a full disk can lose, double or misplace a row.

A growing HDF5 file does not survive a kill. So the file is made whole first (schema.write_skeleton), under the
name NAME.partial, and closed; its space is reserved; from then on rows are plain bytes written at their places
with no HDF5 library involved. A row's status byte is written after the row is safely on the disk. At the end the
file is checked, marked complete, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from featx.atomic import disk_errors, flush_to_disk, refuse_special_file
from featx.errors import FileFormatError, Interrupted, PlanMismatch
from featx.store.extents import READ_ERRORS, Extent, read_extents, read_provenance
from featx.store.schema import (
    DONE,
    PENDING,
    FilePlan,
    complete_offset,
    differences,
    essence,
    partial_path,
    write_skeleton,
)

STALE_S = 60
LOCK_ATTEMPTS = 100


class FeatureWriter:
    """Writes blocks of rows into NAME.partial; several threads may write different blocks at once.

    Use `FeatureWriter.open` and close it, or use it in a `with` statement. `finish` renames to NAME.
    """

    def __init__(self, path: Path, descriptor: int, extents: Mapping[str, Extent], fingerprint: str) -> None:
        self.path = path
        self._fingerprint = fingerprint
        self._fd = descriptor
        self._extents = extents
        self.status = self._read_status()

    @classmethod
    def open(cls, path: Path, plan: FilePlan, *, retry_failed: bool = False) -> FeatureWriter:
        """Create NAME.partial, or take up an earlier run's.

        Raises:
            PlanMismatch: the partial file belongs to another plan; the differences are named.
            Interrupted: another process is writing it.
            DiskError: it cannot be created, or there is not enough space for it.
        """
        partial = partial_path(path)
        with disk_errors(partial):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(partial, plan)
            try:
                extents = _extents_or_nothing(partial, plan)
                if extents is None:
                    partial.unlink()
                    os.close(descriptor)
                    return cls.open(path, plan, retry_failed=retry_failed)
                _reserve(descriptor, partial, extents)
                writer = cls(path, descriptor, extents, plan.fingerprint)
                if retry_failed:
                    writer._forget_failures()
                return writer
            except BaseException:
                os.close(descriptor)
                raise

    @classmethod
    def join(cls, path: Path, plan: FilePlan) -> FeatureWriter | None:
        """Take part in filling a NAME.partial that another process has opened and shares.

        Returns:
            None if it is finished already, or being finished.
        """
        partial = partial_path(path)
        with disk_errors(partial):
            try:
                descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                if not (_take_lock(descriptor, fcntl.LOCK_SH) and _is_still(partial, descriptor)):
                    os.close(descriptor)
                    return None
                return cls(path, descriptor, _extents_of(partial, plan), plan.fingerprint)
            except BaseException:
                os.close(descriptor)
                raise

    def share(self) -> None:
        """Let other processes `join`; runs that are not of this group are still kept out.

        Raises:
            Interrupted: another run has taken the file just now.
        """
        if not _take_lock(self._fd, fcntl.LOCK_SH):
            raise _busy(partial_path(self.path))

    def hold_alone(self) -> bool:
        """Keep everybody else out again; False while processes that have joined are at work."""
        if _take_lock(self._fd, fcntl.LOCK_EX):
            return True
        self.share()  # the failed attempt has cost the lock that was held
        return False

    def refresh(self) -> None:
        """Learn what other processes have written."""
        self.status = self._read_status()

    @classmethod
    def open_failed(cls, path: Path, plan: FilePlan) -> FeatureWriter:
        """Take up the failed rows of a finished file, in a copy called NAME.partial.

        The finished file stays as it is until `finish` puts the better one in its place.
        """
        partial = partial_path(path)
        if not os.path.lexists(partial):
            _extents_of(path, plan)
            with disk_errors(partial):
                temporary = _temporary(partial)
                try:
                    shutil.copyfile(path, temporary)
                    _link_unless_there(temporary, partial)
                finally:
                    temporary.unlink(missing_ok=True)
        return cls.open(path, plan, retry_failed=True)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pending_blocks(self, batch_size: int) -> list[int]:
        """First rows of the blocks in which some row is still to be done."""
        pending = np.flatnonzero(self.status == PENDING) // batch_size
        return [int(block) * batch_size for block in np.unique(pending)]

    def write_block(
        self,
        first: int,
        features: Mapping[str, npt.NDArray[np.floating[Any]]],
        *,
        status: npt.NDArray[np.uint8],
        sha256: npt.NDArray[np.uint8],
        orientation: npt.NDArray[np.uint8],
        decoder: npt.NDArray[np.uint8],
        reasons: Mapping[int, str],
    ) -> None:
        """Write B rows from `first` on; when this returns they survive whatever happens to the process.

        Args:
            features: layer -> (B, ...) in the file's type; failed rows are NaN.
            status: (B,) DONE or a kind of failure.
            sha256, orientation, decoder: (B, 32), (B,) and (B,).
            reasons: row in the block -> why it failed.
        """
        count = len(status)
        if first < 0 or first + count > len(self.status):
            raise ValueError(f"the file has {len(self.status)} rows, got {count} for row {first}")
        texts = np.zeros(count, self._extents["images/reason"].dtype)
        for place, text in reasons.items():
            texts[place] = _cut_utf8(text, texts.dtype.itemsize)
        arrays: dict[str, npt.NDArray[Any]] = {f"features/{layer}": rows for layer, rows in features.items()}
        arrays |= {"images/sha256": sha256, "images/orientation": orientation}
        arrays |= {"images/decoder": decoder, "images/reason": texts}
        runs = _runs(self.status[first : first + count] == PENDING)  # what is done is never written again
        with disk_errors(self.path):
            if not _is_still(partial_path(self.path), self._fd):
                raise FileNotFoundError(errno.ENOENT, "the unfinished file was deleted or renamed during the run")
            for start, end in runs:
                for name, rows in arrays.items():
                    self._put(name, first + start, rows[start:end])
            # The rows must be on the disk before their status says so: a kill or a power failure between the
            # two costs this block, never a lie.
            os.fdatasync(self._fd)
            for start, end in runs:
                self._put("images/status", first + start, status[start:end])
                self.status[first + start : first + end] = status[start:end]

    def replace_state(self, old: str, new: str) -> None:
        """Say that the images, compared with what is there, are now files of another state (`images.contents`)."""
        extent = self._extents["provenance"]
        start, size = extent.offset or 0, extent.dtype.itemsize
        before, after = (json.dumps({"files": state})[1:-1].encode() for state in (old, new))
        place = os.pread(self._fd, size, start).find(before)
        if len(before) == len(after) and place >= 0:
            with disk_errors(self.path):
                _write_all(self._fd, after, start + place)

    def finish(self) -> None:
        """Check that nothing is pending, mark the file complete, and give it its final name."""
        pending = int((self._read_status() == PENDING).sum())
        if pending:
            raise FileFormatError(f"{partial_path(self.path)}: {pending} rows are still to be done")
        with disk_errors(self.path):
            os.fsync(self._fd)
            self._mark_complete(1)
            os.fsync(self._fd)
            if os.path.lexists(self.path) and not self._is_older_version():
                raise PlanMismatch(
                    f"{self.path} appeared during the run and is something else; the new file is whole and kept as "
                    f"{partial_path(self.path)}"
                )
            os.rename(partial_path(self.path), self.path)
            flush_to_disk(self.path.parent)
        self.close()

    def _is_older_version(self) -> bool:
        """Whether the file under the final name is of the same plan: the one whose failed rows were retried."""
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                return bool(file.attrs["fingerprint"].decode() == self._fingerprint)
        except READ_ERRORS:
            return False

    def close(self) -> None:
        """Give the file free for other processes; what was written stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_status(self) -> npt.NDArray[np.uint8]:
        extent = self._extents["images/status"]
        return np.frombuffer(os.pread(self._fd, extent.shape[0], extent.offset or 0), np.uint8).copy()

    def _forget_failures(self) -> None:
        self._mark_complete(0)
        self.status[self.status > DONE] = PENDING
        self._put("images/status", 0, self.status)

    def _mark_complete(self, value: int) -> None:
        _write_all(self._fd, bytes([value]), complete_offset(partial_path(self.path)))

    def _put(self, name: str, first: int, rows: npt.NDArray[Any]) -> None:
        extent = self._extents[name]
        if rows.dtype != extent.dtype or rows.shape[1:] != extent.shape[1:]:
            raise ValueError(f"/{name} takes {extent.dtype} {extent.shape[1:]}, got {rows.dtype} {rows.shape[1:]}")
        content = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        _write_all(self._fd, content.data, (extent.offset or 0) + first * extent.row_bytes)


def _write_all(descriptor: int, content: memoryview | bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _cut_utf8(text: str, size: int) -> bytes:
    return text.encode(errors="backslashreplace")[:size].decode(errors="ignore").encode()


def _runs(wanted: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last + 1 of every run of true values.

    >>> _runs(np.array([True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _lock(partial: Path, plan: FilePlan) -> int:
    """An open descriptor of NAME.partial, created if need be, that no other process holds."""
    for _ in range(LOCK_ATTEMPTS):
        if not os.path.lexists(partial):
            _create(partial, plan)
        refuse_special_file(partial)
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process finished and renamed it just now
        if not _take_lock(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            raise _busy(partial)
        if _is_still(partial, descriptor):
            return descriptor
        os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "it comes and goes, or is a broken link")


def _take_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy(partial: Path) -> Interrupted:
    return Interrupted(f"{partial} is being written by another featx; wait for it, or choose another output")


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _create(partial: Path, plan: FilePlan) -> None:
    """Make the skeleton under a name of its own and give it the name NAME.partial if nobody else has."""
    for stale in partial.parent.glob(f"{glob.escape(partial.name)}.*.new"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - stale.stat().st_mtime > STALE_S:  # left by a process that was killed just here
                stale.unlink()
    temporary = _temporary(partial)
    try:
        write_skeleton(temporary, plan)
        flush_to_disk(temporary)
        _link_unless_there(temporary, partial)
        flush_to_disk(partial.parent)
    except RuntimeError as error:  # h5py's word for a failed flush
        raise OSError(errno.EIO, " ".join(str(error).split())) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.{os.getpid()}.new")


def _link_unless_there(temporary: Path, partial: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.link(temporary, partial)


def _extents_or_nothing(partial: Path, plan: FilePlan) -> dict[str, Extent] | None:
    """As `_extents_of`; None for a file of another plan in which nothing was done yet, and so nothing can be lost."""
    try:
        return _extents_of(partial, plan)
    except PlanMismatch:
        with h5py.File(partial, "r", locking=False) as file:
            if (file["images/status"][:] == DONE).any():
                raise
        return None


def _extents_of(partial: Path, plan: FilePlan) -> dict[str, Extent]:
    try:
        with h5py.File(partial, "r", locking=False) as file:
            extents = read_extents(file, str(partial))
            fingerprint = file.attrs["fingerprint"].decode()
            stored = read_provenance(file)
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"{partial} is damaged ({reason}); delete it and run again") from error
    if fingerprint != plan.fingerprint:
        named = differences(essence(stored), essence(plan.provenance))
        raise PlanMismatch(
            f"{partial} was begun with another plan: {'; '.join(named[:3])}. Repeat that command to resume it, "
            f"choose another output, or delete it"
        )
    for name, (shape, dtype) in plan.arrays().items():
        found = extents.get(name)
        # The provenance is as long as the name of the images' folder and of the processor it was begun on.
        same = found is not None and (found.dtype == dtype or (name == "provenance" and found.dtype.kind == "S"))
        if found is None or not same or found.shape != shape or (found.offset is None and 0 not in shape):
            raise FileFormatError(
                f"{partial} was changed by another program: /{name} does not lie in it as featx left it; it can be "
                f"read, but not written"
            )
    return extents


def _reserve(descriptor: int, partial: Path, extents: Mapping[str, Extent]) -> None:
    """Have the disk set aside every byte now: a full disk is found before the work, not after hours of it."""
    end = os.fstat(descriptor).st_size
    try:
        os.posix_fallocate(descriptor, 0, end)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return  # a file system that cannot reserve; the free space was compared with the plan
        status = extents["images/status"]
        untouched = not any(os.pread(descriptor, status.shape[0], status.offset or 0))
        if untouched:
            partial.unlink()
        raise
