"""Whether the images of a source are still the files that something was made from.

The names of two folders can agree where their images do not, and an image can be replaced under its name. The state
of the files, sizes and times, is quickly compared, with the bytes of a few; where it differs, as after a copy, the
bytes of all decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from featx.errors import UsageError
from featx.images.bad_image import BadImage
from featx.images.manifest import Manifest
from featx.images.sources.containers import Container, open_container
from featx.images.sources.video.clips import clip_of, clips_of
from featx.runtime.files import sha256_of_file
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.text import printable
from featx.runtime.threads import usable_cores

_BITS = 128
SAMPLED_FILES = 16  # files whose bytes are compared although nothing seems to have changed
_AT_ONCE = 64  # files a thread reads before it says so


def files_state(manifest: Manifest) -> str:
    """What tells at a glance that no file was replaced: path, size and time of change; in a zip size and checksum.

    Hexadecimal. A sum over the images (Bellare & Micciancio, EUROCRYPT 1997), so that the states of a job's shards
    add up to that of the whole: `sum_of_states`.
    """
    total = 0
    for path, one in zip(manifest.paths, _states(manifest), strict=True):
        total += int.from_bytes(hashlib.blake2b(b"%s\0%s" % (path, one), digest_size=_BITS // 8).digest(), "little")
    return _hexadecimal(total)


def sum_of_states(states: Iterable[object]) -> str | None:
    """The state of a whole job, from those of its shards; None if one of them does not say."""
    try:
        return _hexadecimal(sum(int(str(state), 16) for state in states))
    except ValueError:
        return None


def _hexadecimal(total: int) -> str:
    return f"{total % (1 << _BITS):0{_BITS // 4}x}"


def _states(manifest: Manifest) -> Iterator[bytes]:
    container = open_container(manifest.kind, manifest.root)
    try:
        yield from map(container.state, manifest.paths)
    finally:
        container.close()


def copies_in(manifest: Manifest, *, reporter: Reporter = SILENT) -> npt.NDArray[np.intp]:
    """(N,) which images are of the same bytes: the row of the first of them; only files of equal size are read."""
    first = np.arange(len(manifest))
    if manifest.kind == "video":
        return _clips_in(manifest)
    container = open_container(manifest.kind, manifest.root)
    states = [container.alike(path) for path in manifest.paths]
    container.close()
    sizes, size_of = np.unique(np.array(states, dtype=object).astype(bytes), return_inverse=True)
    alike = np.flatnonzero((np.bincount(size_of, minlength=len(sizes)) > 1)[size_of])
    if not len(alike):
        return first
    hashes = content_hashes(manifest, alike, reporter=reporter)
    readable = hashes.any(axis=1)
    _, place, group = np.unique(hashes[readable], axis=0, return_index=True, return_inverse=True)
    first[alike[readable]] = alike[readable][place[group.reshape(-1)]]
    return first


def _clips_in(manifest: Manifest) -> npt.NDArray[np.intp]:
    """(N,) which rows are of the same clip, or of clips whose files have the same bytes."""
    clips = clips_of(manifest.source)
    assert clips is not None
    folder, keys = clips.folder, dict[bytes, bytes]()
    for path in manifest.paths:
        if (clip := clip_of(path)) not in keys:
            file = folder / os.fsdecode(clip)
            keys[clip] = sha256_of_file(file).encode() if file.is_file() else clip
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(keys[clip_of(p)], row) for row, p in enumerate(manifest.paths)], np.intp)


def groups_among(paths: Sequence[bytes], by: str) -> npt.NDArray[np.intp]:
    """(N,) which rows are of the same group, by what a pattern finds in their paths: the first of them.

    Raises:
        UsageError: it is no pattern, or finds nothing in a path.
    """
    first: dict[bytes, int] = {}
    names = group_names(paths, by)
    return np.array([first.setdefault(name, row) for row, name in enumerate(names)], np.intp)


def named_groups(names: Sequence[str]) -> npt.NDArray[np.intp]:
    """(N,) which rows are of the same group, by its name: the first of them; without a name each is alone."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(name, row) if name else row for row, name in enumerate(names)], np.intp)


def group_names(paths: Sequence[bytes], by: str) -> list[bytes]:
    """What a pattern finds in each path: its first group, or all of it.

    Raises:
        UsageError: as for `groups_among`.
    """
    try:
        pattern = re.compile(os.fsencode(by))
    except re.error as error:
        raise UsageError(f"{by!r} is no regular expression: {error}") from error
    names = []
    for path in paths:
        found = pattern.search(path)
        name = None if found is None else found[1] if pattern.groups else found[0]
        if name is None:
            raise UsageError(f"{by!r} finds nothing in {printable(path)}")
        names.append(name)
    return names


def clips_among(paths: Sequence[bytes]) -> npt.NDArray[np.intp]:
    """(N,) which rows are of the same clip: the first of them."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(clip_of(path), row) for row, path in enumerate(paths)], np.intp)


def content_hashes(
    manifest: Manifest, rows: npt.NDArray[np.integer] | None = None, *, reporter: Reporter = SILENT
) -> npt.NDArray[np.uint8]:
    """(R, 32) SHA-256 of the files of some rows, of all by default; zeros where a file cannot be read."""
    rows = np.arange(len(manifest)) if rows is None else rows
    found = np.zeros((len(rows), 32), np.uint8)
    local = threading.local()  # one handle of a zip per thread: opening one reads its whole directory

    def read(row: int) -> bytes:
        if not hasattr(local, "container"):
            local.container = open_container(manifest.kind, manifest.root)
            containers.append(local.container)
        content: bytes = local.container.read(manifest.paths[row])
        return content

    def some(start: int) -> int:
        chosen = rows[start : start + _AT_ONCE]
        for place, row in enumerate(chosen, start):
            with contextlib.suppress(BadImage):
                found[place] = np.frombuffer(hashlib.sha256(read(int(row))).digest(), np.uint8)
        return len(chosen)

    containers: list[Container] = []
    reporter = reporter if len(rows) > SAMPLED_FILES else SILENT
    reporter.begin("hash images", len(rows), 0)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for count in pool.map(some, range(0, len(rows), _AT_ONCE)):
            reporter.advance(count)
    for container in containers:
        container.close()
    reporter.end()
    return found
