"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from featx.errors import DiskError, FeatxError, FileFormatError, Interrupted

LOCK = ".lock"
_ATTEMPTS = 100
_NAME_PART = 100  # of a file's own name in that of a temporary one, which must stay below 255 bytes
_log = logging.getLogger("featx")
_RUST = re.compile(r"\(os error (\d+)\)")
_UNFINISHED = re.compile(r".+\.[0-9a-f]{16}\.partial|\.tmp[A-Za-z0-9]{6}")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None if there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None  # whoever makes it says what is wrong
    return found.st_ino, found.st_mtime_ns


@contextlib.contextmanager
def unchanged(path: Path, before: tuple[int, int] | None, *, is_written: bool) -> Iterator[None]:
    """Raise FileFormatError if after the block, whatever came of it, a name stands for another file than `before`.

    Args:
        before: its `identity` then.
        is_written: it may have grown meanwhile.
    """
    try:
        yield
    finally:
        now = identity(path)
        if is_written and now and before:
            now, before = (now[0], 0), (before[0], 0)
        if now != before:
            raise FileFormatError(f"{path} was replaced or changed since it was opened; open it again")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a DiskError that names the file."""
    try:
        yield
    except FeatxError:
        raise
    except Exception as error:
        number, reason = _refusal_of(error)
        if reason is None:
            raise
        hint = "; free some space and run the same command again" if number == errno.ENOSPC else ""
        raise DiskError(f"{path}: {reason}{hint}") from error


def _refusal_of(error: Exception) -> tuple[int | None, str | None]:
    """The operating system's number and words in an error, None if it is no refusal of its."""
    if isinstance(error, OSError):
        # HDF5 puts a paragraph of its own into the text.
        in_words = error.errno is None or "errno = " not in str(error.strerror)
        return error.errno, str(error.strerror or error) if in_words else os.strerror(error.errno or 0)
    found = _RUST.search(str(error))  # as of safetensors
    return (None, None) if found is None else (int(found[1]), os.strerror(int(found[1])))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path this gives; at the end the file is flushed and gets its name, after an error it is gone.

    Raises:
        DiskError: whatever the operating system refused.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = new_file_beside(path, ".partial")
        try:
            mode = partial.stat().st_mode  # as the umask wants it; safetensors makes its files private
            yield partial
            with unless_unsupported("the change of permissions", path):
                partial.chmod(mode)
            flush_to_disk(partial)
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def new_file_beside(path: Path, ending: str) -> Path:
    """A new empty file in the folder of `path`, under a name that nobody can foresee; it follows no link."""
    for _ in range(_ATTEMPTS):
        made = path.with_name(f"{path.name[:_NAME_PART]}.{secrets.token_hex(8)}{ending}")
        with contextlib.suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(made, flags, 0o666))
            return made
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


# What file systems answer that cannot do something: network shares, FUSE, FAT, overlays.
_UNSUPPORTED = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENOTTY}
_said: set[str] = set()


@contextlib.contextmanager
def unless_unsupported(what: str, path: Path) -> Iterator[None]:
    """Go on without something that the file system cannot do, and say so once; other errors are raised."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if what not in _said:
            _said.add(what)
            _log.warning("featx: note: the file system of %s does not support %s (%s)", path, what, error.strerror)


def refuse_special_file(path: Path) -> None:
    """Raise FileFormatError for what is there and is no regular file: opening a FIFO would wait for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return  # whoever opens it says so
    except OSError as error:
        raise FileFormatError(f"{path}: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise FileFormatError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file for this process, or share it with others that do; False if somebody else holds it."""
    try:
        with unless_unsupported(
            "locks: do not run two commands with one output", Path(f"/proc/self/fd/{descriptor}")
        ):
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def busy(path: Path) -> Interrupted:
    """What to raise where another process holds the lock."""
    return Interrupted(f"{path} is being written by another featx; wait for it, or choose another output")


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder and hold its lock; a folder in which nothing was stored is removed again.

    What a process that held the lock and was killed had begun to write is removed.

    Raises:
        Interrupted: another process holds it.
    """
    made, used = not folder.exists(), (folder / LOCK).exists()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not try_lock(descriptor):
            raise busy(folder)
        if used:
            _remove_unfinished(folder)
        yield
    finally:
        if made and os.listdir(folder) == [LOCK]:  # refused before anything was stored
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
                folder.rmdir()
        os.close(descriptor)


def _remove_unfinished(folder: Path) -> None:
    """Remove the files of `replacing` and of safetensors that never got their names, also one folder down."""
    for parent in (folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())):
        for path in parent.iterdir():
            if _UNFINISHED.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


def is_hdf5(path: Path) -> bool:
    """Whether a regular file begins as HDF5 files do."""
    if not path.is_file():
        return False
    with disk_errors(path), path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def flush_to_disk(path: Path) -> None:
    """Make a file's bytes, or a folder's renames, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with unless_unsupported("flushing to the disk: a loss of power may cost the file", path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def memory_file() -> IO[bytes]:
    """A file that nobody else sees; on disk, without a name, where there is no other."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("skeleton", os.MFD_CLOEXEC), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
