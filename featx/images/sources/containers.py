"""Where the bytes of a source's images are: files, members of a zip or of tars, rows of an HDF5 dataset."""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from featx.errors import SourceError
from featx.images.bad_image import MAX_FILE_BYTES, BadImage
from featx.images.processes.turns import Need, no_turns
from featx.images.sources.read import Archive, not_empty, read_file, read_member
from featx.runtime.files import is_hdf5
from featx.status import Status

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_DATASET = re.compile(r"(?P<file>.+\.(?:h5|hdf5)):/*(?P<name>.+)", re.IGNORECASE)
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
    return DatasetRows(root) if kind == "hdf5" else Files(root)


class Files:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        return read_file(self._root / os.fsdecode(path), need)

    def state(self, path: bytes) -> bytes:
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
        self._archive = Archive(root)

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
                with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as archive:
                    for member in archive:
                        self._add(number, prefix, member)
            except tarfile.TarError as error:
                raise SourceError(
                    f"{shard} cannot be read as a tar: {error}. A compressed one has no places to read from; "
                    f"uncompress it first, as with gunzip"
                ) from error

    def _add(self, shard: int, prefix: bytes, member: tarfile.TarInfo) -> None:
        name = os.fsencode(member.name).removeprefix(b"./")
        if member.isdir():
            return
        if not member.isreg() or member.sparse is not None:
            self.skipped.setdefault("link or sparse file in a tar", []).append(name)
            return
        if prefix + name in self.members:
            self.twice.append(prefix + name)
        self.members[prefix + name] = shard, member.offset_data, member.size, int(member.mtime)

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        if path not in self.members:
            raise BadImage(Status.MISSING, "no such member of the tar")
        shard, place, size, _ = self.members[path]
        if size > MAX_FILE_BYTES:
            raise BadImage(Status.TOO_LARGE, f"the member has {size} bytes, more than {MAX_FILE_BYTES}")
        need(size)
        try:
            if shard not in self._open:
                self._open[shard] = os.open(self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            content = os.pread(self._open[shard], size, place)
        except OSError as error:
            raise BadImage(Status.UNREADABLE, error.strerror or str(error)) from None
        if len(content) < size:
            raise BadImage(Status.DAMAGED, "the tar ends before this member does")
        return not_empty(content)

    def state(self, path: bytes) -> bytes:
        if path not in self.members:
            return _MISSING
        shard, place, size, mtime = self.members[path]
        changed = os.stat(self.shards[shard]).st_mtime_ns
        return b"%d,%d,%d,%d" % (size, mtime, place, changed)

    def alike(self, path: bytes) -> bytes:
        return b"%d" % self.members[path][2] if path in self.members else _MISSING

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class DatasetRows:
    """Images of an HDF5 dataset, FILE.h5:/NAME, uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3): each as a PNM file."""

    def __init__(self, root: Path) -> None:
        self.file, self.name = split_dataset(root)

    @cached_property
    def _dataset(self) -> Any:
        import h5py

        try:
            found = h5py.File(self.file, "r", locking=False).get(self.name)
        except OSError as error:
            raise SourceError(f"{self.file} cannot be read as an HDF5 file: {error}") from error
        if not isinstance(found, h5py.Dataset):
            raise SourceError(f"{self.file} has no dataset {self.name}")
        shape = found.shape
        if found.dtype != "uint8" or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise SourceError(
                f"{self.file}:/{self.name} is {found.dtype} {shape}; images are uint8 (N, H, W), (N, H, W, 1) or "
                f"(N, H, W, 3)"
            )
        return found

    def __len__(self) -> int:
        return int(self._dataset.shape[0])

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        rows = self._dataset
        try:
            row = int(path)
            if not 0 <= row < len(rows):
                raise ValueError
        except ValueError:
            raise BadImage(Status.MISSING, "no such row of the dataset") from None
        need(rows.nbytes // len(rows))
        try:
            pixels = rows[row]
        except OSError as error:
            raise BadImage(Status.DAMAGED, str(error).splitlines()[0]) from None
        kind = b"P6" if pixels.ndim == 3 and pixels.shape[2] == 3 else b"P5"
        content: bytes = pixels.tobytes()
        return b"%s\n%d %d\n255\n" % (kind, pixels.shape[1], pixels.shape[0]) + content

    def state(self, path: bytes) -> bytes:
        try:
            found = os.stat(self.file)
        except OSError:
            return _MISSING
        return b"%d,%d" % (found.st_size, found.st_mtime_ns)

    def alike(self, path: bytes) -> bytes:
        return b"same size"

    def close(self) -> None:
        if "_dataset" in self.__dict__:
            self.__dict__.pop("_dataset").file.close()


def is_dataset(source: Path) -> bool:
    """Whether a source is FILE.h5:/NAME."""
    found = _DATASET.fullmatch(str(source))
    return found is not None and not source.exists()


def split_dataset(source: Path) -> tuple[Path, str]:
    """The file and the name of FILE.h5:/NAME."""
    found = _DATASET.fullmatch(str(source))
    if found is None:
        raise SourceError(f"{source} names no dataset; write FILE.h5:/NAME")
    file = Path(found["file"])
    if not file.is_file():
        raise SourceError(f"no file {file}")
    if not is_hdf5(file):
        raise SourceError(f"{file} is not an HDF5 file")
    return file, found["name"]


def expand_braces(source: Path) -> list[Path]:
    """The files that NAME-{000..099}.tar names, in order; a name without braces as it is.

    >>> [path.name for path in expand_braces(Path("s-{08..10}.tar"))]
    ['s-08.tar', 's-09.tar', 's-10.tar']
    """
    text = str(source)
    ranges = [(match[1], match[2]) for match in _RANGE.finditer(text)]
    if not ranges:
        return [source]
    counted = [
        [f"{number:0{len(first) if first.startswith('0') else 1}d}" for number in range(int(first), int(last) + 1)]
        for first, last in ranges
    ]
    count = 1
    for numbers in counted:
        count *= len(numbers)
    if not 0 < count <= MOST_SHARDS:
        raise SourceError(f"{source} names {count:,} files; it can be 1 to {MOST_SHARDS:,}")
    parts = _RANGE.split(text)[::3]  # what stands between the ranges
    return [
        Path("".join(itertools.chain.from_iterable(zip(parts, [*numbers, ""], strict=True))))
        for numbers in itertools.product(*counted)
    ]
