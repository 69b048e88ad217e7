"""Where the bytes of a source's images are: files, members of a zip or of tars, rows of an HDF5 dataset."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import tarfile
from pathlib import Path
from typing import IO, Protocol

from featx.errors import SourceError
from featx.images.bad_image import MAX_FILE_BYTES, BadImage
from featx.images.processes.turns import Need, no_turns
from featx.images.sources.dataset import DatasetRows
from featx.images.sources.read import Archive, not_empty, read_file, read_member
from featx.images.sources.remote import fetch, is_url_in_list, joined, opened, url_of
from featx.images.sources.remote_folder import RemoteFiles
from featx.images.sources.table import TableRows
from featx.status import Status

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MISSING = b"missing"
MOST_SHARDS = 100_000


class Container(Protocol):
    """The images of a source by their paths; used by one thread."""

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        """The bytes of an image file.

        Raises:
            BadImage: there are none to be had.
        """

    def state(self, path: bytes) -> bytes:
        """What tells at a glance that it was not replaced: size, and time or checksum."""

    def alike(self, path: bytes) -> bytes:
        """What images of the same bytes have in common: their size at least."""

    def close(self) -> None:
        """Close what is open."""


def root_of(kind: str, source: Path) -> Path:
    """What the paths of a source are relative to: a folder, or the file that holds the images."""
    return source.parent if kind in ("list", "csv") else source


def open_container(kind: str, root: Path) -> Container:
    """The images of a source.

    Args:
        kind: as of a `Manifest`.

    Raises:
        OSError, zipfile.BadZipFile, SourceError: it cannot be read.
    """
    if kind == "zip":
        return ZipMembers(root)
    if kind == "tar":
        return TarMembers(root)
    if kind == "remote":
        return RemoteFiles(root)
    if kind == "video":
        from featx.images.sources.video.clips import ClipSamples  # it reads lists, whose files are read here

        return ClipSamples(root)
    if kind == "table":
        return TableRows(root)
    return DatasetRows(root) if kind == "hdf5" else Files(root)


class Files:
    """Files below a folder, or, in a list, at addresses."""

    def __init__(self, root: Path) -> None:
        self._root, self._address = root, url_of(root)
        self._own = os.fsencode((self._address or "").partition("://")[0] + "://")

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        if is_url_in_list(path):
            if self._address is not None and not path.startswith((b"http://", b"https://", self._own)):
                raise BadImage(Status.UNREADABLE, "a list at an address names images at addresses of its kind")
            return fetch(os.fsdecode(path), need=need)
        if self._address is not None:
            return fetch(joined(self._address, os.fsdecode(path)), need=need)
        return read_file(self._root / os.fsdecode(path), need)

    def state(self, path: bytes) -> bytes:
        if is_url_in_list(path) or self._address is not None:
            return b"at its address"  # to ask for each would take as long as to fetch it
        try:
            found = os.stat(os.path.join(os.fsencode(self._root), path))
        except (OSError, ValueError):
            return _MISSING
        return b"%d,%d" % (found.st_size, found.st_mtime_ns)

    def alike(self, path: bytes) -> bytes:
        return self.state(path).partition(b",")[0]

    def close(self) -> None:
        """There is nothing open."""


class ZipMembers:
    """Members of a zip."""

    def __init__(self, root: Path) -> None:
        url = url_of(root)
        self._archive = Archive(root if url is None else opened(url))

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        return read_member(self._archive, path, need)

    def state(self, path: bytes) -> bytes:
        member = self._archive.members.get(path)
        return _MISSING if member is None else b"%d,%d" % (member.file_size, member.CRC)

    alike = state

    def close(self) -> None:
        self._archive.close()


class TarMembers:
    """Members of one uncompressed tar, or of several that NAME-{000..099}.tar names.

    Attributes:
        members: path -> shard, place of the first byte, size, time. With several tars the paths begin with theirs.
        skipped: members that are no plain files: reason -> names.
        twice: paths that more than one member has.
    """

    def __init__(self, root: Path) -> None:
        self.shards = expand_braces(root)
        self.members: dict[bytes, tuple[int, int, int, int]] = {}
        self.skipped: dict[str, list[bytes]] = {}
        self.twice: list[bytes] = []
        self._open: dict[int, int] = {}
        for number, shard in enumerate(self.shards):
            prefix = os.fsencode(shard.name) + b"/" if len(self.shards) > 1 else b""
            try:
                with (
                    _opened(shard) as file,
                    tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive,
                ):
                    for member in archive:
                        self._add(number, prefix, member)
            except FileNotFoundError:
                raise
            except BadImage as bad:
                raise SourceError(f"{shard} cannot be read: {bad}") from None
            except (tarfile.TarError, ValueError, OverflowError, MemoryError, OSError) as error:  # of hostile headers
                raise SourceError(
                    f"{shard} cannot be read as a tar: {error}. A compressed one has no places to read from; "
                    f"uncompress it first, as with gunzip"
                ) from error

    def _add(self, shard: int, prefix: bytes, member: tarfile.TarInfo) -> None:
        name = os.fsencode(member.name).removeprefix(b"./")
        if member.isdir():
            return
        if not member.isreg() or member.sparse is not None or member.size < 0:
            self.skipped.setdefault("link or sparse file in a tar", []).append(name)
            return
        if prefix + name in self.members:
            self.twice.append(prefix + name)
        mtime = int(member.mtime) if math.isfinite(member.mtime) else 0
        self.members[prefix + name] = shard, member.offset_data, member.size, mtime

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        if path not in self.members:
            raise BadImage(Status.MISSING, "no such member of the tar")
        shard, place, size, _ = self.members[path]
        if size > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"the member has {size} bytes, more than {MAX_FILE_BYTES}")
        need(size)
        if (url := url_of(self.shards[shard])) is not None:
            content = fetch(url, place, place + size) if size else b""
        else:
            content = self._read_at(shard, place, size)
        if len(content) < size:
            raise BadImage(Status.DAMAGED, "the tar ends before this member does")
        return not_empty(content)

    def _read_at(self, shard: int, place: int, size: int) -> bytes:
        try:
            if shard not in self._open:
                self._open[shard] = os.open(self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._open[shard], size, place)
        except OSError as error:
            raise BadImage(Status.UNREADABLE, error.strerror or str(error)) from None

    def state(self, path: bytes) -> bytes:
        if path not in self.members:
            return _MISSING
        shard, place, size, mtime = self.members[path]
        remote = url_of(self.shards[shard]) is not None
        changed = 0 if remote else os.stat(self.shards[shard]).st_mtime_ns
        return b"%d,%d,%d,%d" % (size, mtime, place, changed)

    def alike(self, path: bytes) -> bytes:
        return b"%d" % self.members[path][2] if path in self.members else _MISSING

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def _opened(shard: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
    """A tar's bytes, to go through its headers."""
    url = url_of(shard)
    return shard.open("rb") if url is None else opened(url)


def expand_braces(source: Path) -> list[Path]:
    """The files that NAME-{000..099}.tar names, in order; a name without braces as it is.

    >>> [path.name for path in expand_braces(Path("s-{08..10}.tar"))]
    ['s-08.tar', 's-09.tar', 's-10.tar']
    """
    text = str(source)
    ranges = [(match[1], match[2]) for match in _RANGE.finditer(text)]
    if not ranges:
        return [source]
    count = math.prod(max(0, int(last) - int(first) + 1) for first, last in ranges)
    if not 0 < count <= MOST_SHARDS:
        raise SourceError(f"{source} names {count:,} files; it can be 1 to {MOST_SHARDS:,}")
    counted = [
        [f"{number:0{len(first) if first.startswith('0') else 1}d}" for number in range(int(first), int(last) + 1)]
        for first, last in ranges
    ]
    parts = _RANGE.split(text)[::3]  # what stands between the ranges
    return [
        Path("".join(itertools.chain.from_iterable(zip(parts, [*numbers, ""], strict=True))))
        for numbers in itertools.product(*counted)
    ]
