"""The bytes of one file or member of a zip, within limits."""

from __future__ import annotations

import errno
import lzma
import os
import stat
import zipfile
import zlib
from pathlib import Path

from featx.images.bad_image import MAX_FILE_BYTES, BadImage
from featx.status import Status


def read_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        BadImage: missing, unreadable, empty, larger than 1 GiB, or a FIFO, socket or device.
    """
    try:
        # Without O_NONBLOCK the opening of a FIFO waits for ever for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BadImage(Status.MISSING, "no such file") from None
    except OSError as error:
        status = Status.SPECIAL_FILE if error.errno == errno.ENXIO else Status.UNREADABLE  # a socket
        raise BadImage(status, error.strerror or str(error)) from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise BadImage(Status.SPECIAL_FILE, kind)
        if info.st_size > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"the file has {info.st_size} bytes, more than {MAX_FILE_BYTES}")
        content = _read_up_to(descriptor, info.st_size + 1)
        after = os.fstat(descriptor)
        if len(content) != info.st_size or (after.st_size, after.st_mtime_ns) != (info.st_size, info.st_mtime_ns):
            raise BadImage(Status.UNREADABLE, "the file was changed while it was read")
        return _not_empty(content)
    except OSError as error:
        raise BadImage(Status.UNREADABLE, error.strerror or str(error)) from None
    finally:
        os.close(descriptor)


def _read_up_to(descriptor: int, most: int) -> bytes:
    """Up to `most` bytes: a file that somebody appends to has no end."""
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        content = file.read(most) or b""
        if len(content) < most - 1:  # a read of the system gives up to 2 GiB, or less on some network file systems
            parts = [content]
            while sum(map(len, parts)) < most and (part := file.read(most - sum(map(len, parts)))):
                parts.append(part)
            content = b"".join(parts)
    return content


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a zip's member; BadImage as for `read_file`."""
    try:
        info = archive.getinfo(name)
        if info.file_size > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"unpacks to {info.file_size} bytes, more than {MAX_FILE_BYTES}")
        return _not_empty(archive.read(info))
    except KeyError:
        raise BadImage(Status.MISSING, "no such member of the zip") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed by an unknown method
        raise BadImage(Status.UNREADABLE, str(error)) from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise BadImage(Status.DAMAGED, str(error)) from None


def _not_empty(content: bytes) -> bytes:
    if not content:
        raise BadImage(Status.EMPTY, "the file has no bytes")
    return content
