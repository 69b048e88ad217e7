"""The unfinished features file: created, locked, checked and reserved."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import time
from collections.abc import Mapping
from pathlib import Path

import h5py

from featx.errors import FileFormatError, PlanMismatch
from featx.runtime.files import (
    busy,
    flush_to_disk,
    new_file_beside,
    refuse_special_file,
    try_lock,
    unless_unsupported,
)
from featx.status import Status
from featx.store.extents import READ_ERRORS, Extent, read_extents, read_provenance, schema_of
from featx.store.schema import SCHEMA, FilePlan, differences, essence, write_skeleton

STALE_S = 60
LOCK_ATTEMPTS = 100


def write_all(descriptor: int, content: memoryview | bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def lock(partial: Path, plan: FilePlan) -> int:
    """An open descriptor of NAME.partial, created if need be, that no other process holds."""
    for _ in range(LOCK_ATTEMPTS):
        if not os.path.lexists(partial):
            _create(partial, plan)
        refuse_special_file(partial)
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process finished and renamed it just now
        if not try_lock(descriptor):
            os.close(descriptor)
            raise busy(partial)
        if is_still(partial, descriptor):
            return descriptor
        os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "it comes and goes, or is a broken link")


def is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _create(partial: Path, plan: FilePlan) -> None:
    """Make the skeleton under a name of its own and give it the name NAME.partial if nobody else has."""
    for stale in partial.parent.glob(f"{glob.escape(partial.name[:100])}.*.new"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - stale.stat().st_mtime > STALE_S:  # left by a process that was killed just here
                stale.unlink()
    temporary = temporary_path(partial)
    try:
        write_skeleton(temporary, plan)
        flush_to_disk(temporary)
        link_unless_there(temporary, partial)
        flush_to_disk(partial.parent)
    except RuntimeError as error:  # h5py's word for a failed flush
        raise OSError(errno.EIO, " ".join(str(error).split())) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(partial: Path) -> Path:
    """A new file for a skeleton; the ending is that of `_create`'s stale ones."""
    return new_file_beside(partial, ".new")


def link_unless_there(temporary: Path, partial: Path) -> None:
    """Give a file its name unless there is one of that name, which is then left alone."""
    with contextlib.suppress(FileExistsError):
        with unless_unsupported("hard links", partial):
            os.link(temporary, partial)
            return
        # Whoever makes the name has it: an empty file first, in whose place the real one is put.
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        os.replace(temporary, partial)


def extents_or_none(partial: Path, plan: FilePlan) -> dict[str, Extent] | None:
    """As `extents_of`; None for a file of another plan in which nothing was done yet, and so nothing can be lost."""
    try:
        return extents_of(partial, plan)
    except PlanMismatch:
        with h5py.File(partial, "r", locking=False) as file:
            if (file["images/status"][:] == Status.DONE).any():
                raise
        return None


def extents_of(partial: Path, plan: FilePlan) -> dict[str, Extent]:
    try:
        with h5py.File(partial, "r", locking=False) as file:
            extents = read_extents(file, str(partial))
            if (schema := schema_of(file)) != SCHEMA:
                raise FileFormatError(
                    f"{partial} has schema {schema}, and this featx writes schema {SCHEMA}: finish it with the "
                    f"version that began it, or delete it"
                )
            fingerprint = file.attrs["fingerprint"].decode()
            stored = read_provenance(file, str(partial))
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"{partial} is damaged ({reason}); delete it and run again") from error
    if fingerprint != plan.fingerprint:
        named = differences(essence(stored), essence(plan.provenance))
        raise PlanMismatch(
            f"{partial} was begun with different settings: {'; '.join(map(str, named[:3]))}. Repeat that command "
            f"to resume it, choose another output, or delete it"
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


def reserve(descriptor: int, partial: Path, extents: Mapping[str, Extent]) -> None:
    """Have the disk set aside every byte now: a full disk is found before the work, not after hours of it."""
    end = os.fstat(descriptor).st_size
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, end)
        else:
            os.ftruncate(
                descriptor, end
            )  # macOS: the space is not reserved, and a full disk is found when it is full
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOLCK):
            return  # a file system that cannot reserve; the free space was compared with the plan
        status = extents["images/status"]
        untouched = not any(os.pread(descriptor, status.shape[0], status.offset or 0))
        if untouched:
            partial.unlink()
        raise
