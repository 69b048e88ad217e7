"""Whether the images of a source are still the files that something was made from.

The names of two folders can agree where their images do not, and an image can be replaced under its name. The state
of the files, sizes and times, is quickly compared; where it differs, as after a copy, their bytes decide.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from featx.errors import PlanMismatch
from featx.images.decode import BadImage, read_file, read_member
from featx.images.scan import Manifest
from featx.progress import SILENT, Reporter

_BITS = 128
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
    if manifest.kind == "zip":
        with zipfile.ZipFile(manifest.root) as archive:
            members = {os.fsencode(member.filename): member for member in archive.infolist()}
        for path in manifest.paths:
            member = members.get(path)
            yield b"missing" if member is None else b"%d,%d" % (member.file_size, member.CRC)
        return
    root = os.fsencode(manifest.root)
    for path in manifest.paths:
        try:
            found = os.stat(os.path.join(root, path))
            yield b"%d,%d" % (found.st_size, found.st_mtime_ns)
        except (OSError, ValueError):
            yield b"missing"


def content_hashes(
    manifest: Manifest, rows: npt.NDArray[np.integer] | None = None, *, reporter: Reporter = SILENT
) -> npt.NDArray[np.uint8]:
    """(R, 32) SHA-256 of the files of some rows, of all by default; zeros where a file cannot be read."""
    rows = np.arange(len(manifest)) if rows is None else rows
    found = np.zeros((len(rows), 32), np.uint8)

    def some(start: int) -> int:
        chosen = rows[start : start + _AT_ONCE]
        archive = zipfile.ZipFile(manifest.root) if manifest.kind == "zip" else None
        for place, row in enumerate(chosen, start):
            try:
                if archive is None:
                    content = read_file(manifest.full_path(row))
                else:
                    content = read_member(archive, os.fsdecode(manifest.paths[row]))
            except BadImage:
                continue
            found[place] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        if archive is not None:
            archive.close()
        return len(chosen)

    reporter.begin("hash images", len(rows), 0)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for count in pool.map(some, range(0, len(rows), _AT_ONCE)):
            reporter.advance(count)
    reporter.end()
    return found


def record_of(state: str, hashes: npt.NDArray[np.uint8]) -> dict[str, str]:
    """What a table, a report or a run keeps of its images, for `are_same_files`.

    Args:
        state: the files' state before they were read.
        hashes: (N, 32) SHA-256 of every image's bytes.
    """
    return {"state": state, "sha256": hashlib.sha256(np.ascontiguousarray(hashes).tobytes()).hexdigest()}


def are_same_files(stored: object, manifest: Manifest, *, reporter: Reporter = SILENT) -> bool:
    """Whether the images are those of a record, by their state or else by their bytes."""
    if not isinstance(stored, dict):
        return False
    state = files_state(manifest)
    if stored.get("state") == state:
        return True
    return record_of(state, content_hashes(manifest, reporter=reporter)) == {**stored, "state": state}


def refuse_changed_images(
    made: str,
    manifest: Manifest,
    stored_state: str | None,
    hashes: npt.NDArray[np.uint8],
    *,
    reporter: Reporter = SILENT,
) -> None:
    """Raise PlanMismatch if an image is not the one its row was made from.

    Args:
        made: what holds the rows, for the message.
        stored_state: the files' state when it was begun; None if that is not known.
        hashes: (N, 32) SHA-256 of every image's bytes; zeros for rows that are to be left alone. An image that
            cannot be read any more contradicts nothing.
    """
    rows = np.flatnonzero(hashes.any(axis=1))
    if not len(rows) or stored_state == files_state(manifest):
        return
    now = content_hashes(manifest, rows, reporter=reporter)
    changed = rows[now.any(axis=1) & (now != hashes[rows]).any(axis=1)]
    if len(changed):
        raise PlanMismatch(
            f"{made} was made from other images of the same names: {len(changed):,} of {len(rows):,} differ (first: "
            f"{manifest.name(int(changed[0]))}). Choose another output with -o, or delete it"
        )
