"""Fill a features file so that neither a kill nor a full disk can lose, double or misplace a row.

A growing HDF5 file does not survive a kill. So the file is made whole first (schema.write_skeleton), under the
name NAME.partial, and closed; its space is reserved; from then on rows are plain bytes written at their places
with no HDF5 library involved. A row's status byte is written after the row is safely on the disk. At the end the
file is checked, marked complete, and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from featx.errors import FileFormatError, PlanMismatch
from featx.runtime.files import busy, disk_errors, flush_to_disk, try_lock, unless_unsupported
from featx.status import Status
from featx.store.checksums import checksums_of_images, checksums_of_rows
from featx.store.extents import READ_ERRORS, Extent
from featx.store.partial_file import (
    extents_of,
    extents_or_none,
    is_still,
    link_unless_there,
    lock,
    reserve,
    temporary_path,
    write_all,
)
from featx.store.schema import FilePlan, complete_offset, partial_path


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
            descriptor = lock(partial, plan)
            try:
                extents = extents_or_none(partial, plan)
                if extents is None:
                    partial.unlink()
                    os.close(descriptor)
                    return cls.open(path, plan, retry_failed=retry_failed)
                reserve(descriptor, partial, extents)
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
                if not (try_lock(descriptor, shared=True) and is_still(partial, descriptor)):
                    os.close(descriptor)
                    return None
                return cls(path, descriptor, extents_of(partial, plan), plan.fingerprint)
            except BaseException:
                os.close(descriptor)
                raise

    @property
    def datasets(self) -> Collection[str]:
        """The names of what the file holds, without the first slash."""
        return self._extents.keys()

    def share(self) -> None:
        """Let other processes `join`; runs that are not of this group are still kept out.

        Raises:
            Interrupted: another run has taken the file just now.
        """
        if not try_lock(self._fd, shared=True):
            raise busy(partial_path(self.path))

    def hold_alone(self) -> bool:
        """Keep everybody else out again; False while processes that have joined are at work."""
        if try_lock(self._fd):
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
            extents_of(path, plan)
            with disk_errors(partial):
                temporary = temporary_path(partial)
                try:
                    shutil.copyfile(path, temporary)
                    link_unless_there(temporary, partial)
                finally:
                    temporary.unlink(missing_ok=True)
        return cls.open(path, plan, retry_failed=True)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pending_blocks(self, batch_size: int) -> list[int]:
        """First rows of the blocks in which some row is still to be done."""
        pending = np.flatnonzero(self.status == Status.PENDING) // batch_size
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
            status: (B,) Status.DONE or a kind of failure.
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
        arrays |= {
            f"checksums/{name}": checksums_of_rows(rows.astype(self._extents[name].dtype, copy=False))
            for name, rows in arrays.items()
            if name.startswith("features/") and name in self._extents
        }
        arrays["checksums/images"] = checksums_of_images({**arrays, "images/status": status})
        runs = _runs(self.status[first : first + count] == Status.PENDING)  # what is done is never written again
        with disk_errors(self.path):
            if not is_still(partial_path(self.path), self._fd):
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
                write_all(self._fd, after, start + place)

    def finish(self, older: str | None = None) -> None:
        """Check that nothing is pending, mark the file complete, and give it its final name.

        Args:
            older: fingerprint of the finished file that is there under that name, and that this one replaces.
        """
        pending = int((self._read_status() == Status.PENDING).sum())
        if pending:
            raise FileFormatError(f"{partial_path(self.path)}: {pending} rows are still to be done")
        with disk_errors(self.path):
            self._flush()
            self._mark_complete(1)
            self._flush()
            if os.path.lexists(self.path) and not self._is_older_version(older or self._fingerprint):
                raise PlanMismatch(
                    f"{self.path} appeared during the run and is something else; the new file is whole and kept as "
                    f"{partial_path(self.path)}"
                )
            os.rename(partial_path(self.path), self.path)
            flush_to_disk(self.path.parent)
        self.close()

    def _flush(self) -> None:
        with unless_unsupported("flushing to the disk: a loss of power may cost the file", self.path):
            os.fsync(self._fd)

    def _is_older_version(self, fingerprint: str) -> bool:
        """Whether the file under the final name is the one this one replaces: with failed rows, or with fewer."""
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                return bool(file.attrs["fingerprint"].decode() == fingerprint)
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
        self.status[self.status > Status.DONE] = Status.PENDING
        self._put("images/status", 0, self.status)

    def _mark_complete(self, value: int) -> None:
        write_all(self._fd, bytes([value]), complete_offset(partial_path(self.path)))

    def _put(self, name: str, first: int, rows: npt.NDArray[Any]) -> None:
        extent = self._extents[name]
        if rows.dtype != extent.dtype or rows.shape[1:] != extent.shape[1:]:
            raise ValueError(f"/{name} takes {extent.dtype} {extent.shape[1:]}, got {rows.dtype} {rows.shape[1:]}")
        content = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        write_all(self._fd, content.data, (extent.offset or 0) + first * extent.row_bytes)


def _cut_utf8(text: str, size: int) -> bytes:
    return text.encode(errors="backslashreplace")[:size].decode(errors="ignore").encode()


def _runs(wanted: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last + 1 of every run of true values.

    >>> _runs(np.array([True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
