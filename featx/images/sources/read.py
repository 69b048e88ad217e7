"""The bytes of one file or member of a zip, within limits."""

from __future__ import annotations

import errno
import lzma
import math
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import IO

from featx.errors import SourceError
from featx.images.bad_image import MAX_FILE_BYTES, BadImage
from featx.images.processes.turns import Need, no_turns
from featx.status import Status


def read_file(path: Path, need: Need = no_turns) -> bytes:
    """The bytes of a regular file.

    Args:
        need: is told their number first.

    Raises:
        BadImage: missing, unreadable, empty, larger than 1 GiB, or a FIFO, socket or device.
    """
    try:
        # Without O_NONBLOCK the opening of a FIFO waits for ever for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BadImage(Status.MISSING, "no such file") from None
    except ValueError as error:  # a zero byte, or half of a surrogate pair
        raise BadImage(Status.MISSING, f"no name of a file: {error}") from None
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
        need(info.st_size)
        content = _read_up_to(descriptor, info.st_size + 1)
        after = os.fstat(descriptor)
        if len(content) != info.st_size or (after.st_size, after.st_mtime_ns) != (info.st_size, info.st_mtime_ns):
            raise BadImage(Status.UNREADABLE, "the file was changed while it was read")
        return not_empty(content)
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


class Archive(zipfile.ZipFile):
    """A zip whose members go by the names they were given, whatever wrote it.

    Attributes:
        members: name, as bytes with slashes -> member; folders are left out.
        twice: names that more than one member has.
    """

    def __init__(self, path: str | os.PathLike[str] | IO[bytes]) -> None:
        super().__init__(path)
        files = [info for info in self.infolist() if not info.is_dir()]
        names = [_name_of(info) for info in files]
        # PowerShell 5 and old .NET programs write backslashes; a backslash beside slashes is part of a name.
        windows = not any(b"/" in name for name in names)
        if windows:
            names = [name.replace(b"\\", b"/") for name in names]
        names = [name.removeprefix(b"./").lstrip(b"/") for name in names]
        self.members = dict(zip(names, files, strict=True))
        self.twice = [name for name, count in Counter(names).items() if count > 1]


_UTF8_FLAG, _UNICODE_PATH = 0x800, 0x7075


def _name_of(info: zipfile.ZipInfo) -> bytes:
    """UTF-8 where the zip says so; else the bytes as they are in it, which zipfile has read as code page 437."""
    if info.flag_bits & _UTF8_FLAG:
        return info.filename.encode(errors="surrogateescape")
    raw = info.filename.encode("cp437", errors="replace")
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field = extra[4 : 4 + size]
        if kind == _UNICODE_PATH and len(field) > 5 and int.from_bytes(field[1:5], "little") == zlib.crc32(raw):
            return field[5:]
        extra = extra[4 + size :]
    return raw


def read_member(archive: Archive, name: bytes, need: Need = no_turns) -> bytes:
    """The bytes of a zip's member; BadImage as for `read_file`."""
    try:
        info = archive.members[name]
        if info.file_size > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"unpacks to {info.file_size} bytes, more than {MAX_FILE_BYTES}")
        need(info.file_size)
        return not_empty(archive.read(info))
    except KeyError:
        raise BadImage(Status.MISSING, "no such member of the zip") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed by an unknown method
        raise BadImage(Status.UNREADABLE, str(error)) from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise BadImage(Status.DAMAGED, str(error)) from None


def not_empty(content: bytes) -> bytes:
    """The bytes, if there are any; else BadImage."""
    if not content:
        raise BadImage(Status.EMPTY, "the file has no bytes")
    return content


def label_text(value: object, where: str) -> str | None:
    """A label out of somebody's file, as text; None for none.

    Raises:
        SourceError: it holds zero bytes, several lines, or what is not Unicode.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        text = (value.decode() if isinstance(value, bytes) else str(value)).strip()
        text.encode()
    except UnicodeError:
        raise SourceError(f"{where}: the label {value!r:.80} is not Unicode") from None
    if len(text.splitlines()) > 1 or "\0" in text:
        raise SourceError(f"{where}: the label {text!r:.80} holds zero bytes or several lines")
    return text or None
