"""Videos as sources: `frames:25:clips/`, 25 frames of every clip; `flow:25:clips/`, as many stacks of optical flow.

Every frame or stack is a row, called CLIP#frame=I/N or CLIP#flow=I/NxSIDE, and read as the PNM file of its pixels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from featx.errors import SourceError, UsageError
from featx.images.bad_image import BadImage
from featx.images.manifest import Manifest, Skipped, make_manifest
from featx.images.processes.turns import Need, no_turns
from featx.images.sources.folder import scan_folder
from featx.images.sources.lists import scan_csv, scan_list
from featx.images.sources.remote import url_of
from featx.runtime.text import printable
from featx.status import Status

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"})
DEFAULT_SIDE = 224  # of a field of flow, in pixels
MOST_SAMPLES = 10_000
_SOURCE = re.compile(r"(?P<what>frames|flow):(?P<count>\d+)(?:x(?P<side>\d+))?:(?P<place>.+)", re.DOTALL)
_ROW = re.compile(rb"(?P<clip>.+)#(?P<what>frame|flow)=(?P<number>\d+)/(?P<count>\d+)(?:x(?P<side>\d+))?", re.DOTALL)


@dataclass(frozen=True)
class Clips:
    """What a source of videos says.

    Attributes:
        what: "frames" or "flow".
        count: N, of every clip.
        side: of the fields of flow.
        place: a folder, a list, a CSV or one clip.
    """

    what: str
    count: int
    side: int
    place: Path

    @property
    def folder(self) -> Path:
        """What the clips' paths are relative to."""
        return self.place if self.place.is_dir() else self.place.parent


class Sample(NamedTuple):
    """What a row is: the I-th of N frames or stacks of a clip."""

    clip: bytes
    what: str
    number: int
    of: int
    side: int


def clips_of(source: Path) -> Clips | None:
    """What a source of videos says; None for other sources.

    >>> clips_of(Path("flow:5x64:clips")).side, clips_of(Path("clips"))
    (64, None)

    Raises:
        UsageError: a count or a size that cannot be.
    """
    found = _SOURCE.fullmatch(os.fspath(source))
    if found is None or source.exists():
        return None
    count, side = int(found["count"]), int(found["side"] or DEFAULT_SIDE)
    if not 1 <= count <= MOST_SAMPLES:
        raise UsageError(f"{source}: of each clip 1 to {MOST_SAMPLES:,} {found['what']} can be taken")
    if found["what"] == "frames" and found["side"]:
        raise UsageError(f"{source}: only flow has a size; write frames:{count}:{found['place']}")
    if not 8 <= side <= 1024:
        raise UsageError(f"{source}: a field of flow has 8 to 1,024 pixels a side")
    return Clips(found["what"], count, side, Path(found["place"]))


def is_video_name(path: bytes) -> bool:
    return os.path.splitext(os.fsdecode(path))[1].lower() in VIDEO_SUFFIXES


def clip_of(path: bytes) -> bytes:
    """The clip that a row is of; the row itself for an image.

    >>> clip_of(b"left/a.mp4#frame=3/25"), clip_of(b"a.jpg")
    (b'left/a.mp4', b'a.jpg')
    """
    found = _ROW.fullmatch(path)
    return path if found is None else found["clip"]


def scan_clips(source: Path, *, follow_links: bool) -> Manifest:
    """The frames or stacks of the clips of a folder, list or CSV, or of one clip.

    Raises:
        SourceError: nothing there, or no videos.
    """
    clips = clips_of(source)
    assert clips is not None
    place = clips.place
    if place.is_dir():
        try:
            found = scan_folder(place, follow_links, is_video_name)
        except SourceError as error:
            raise SourceError(str(error).replace("no images in", "no videos in", 1)) from None
    elif not place.is_file():
        if (url := url_of(place)) is not None:
            raise SourceError(f"{url}: videos are read from this machine's disks; fetch them first")
        raise SourceError(f"{printable(str(place))}: no such folder or file")
    elif place.suffix.lower() in VIDEO_SUFFIXES:
        found = make_manifest("list", place, place.parent, [os.fsencode(place.name)], [None], [None], Skipped())
    else:
        found = scan_csv(place) if place.suffix.lower() in (".csv", ".tsv") else scan_list(place)
    if len(set(found.paths)) < len(found):
        raise SourceError(f"{place} names a clip more than once")
    rows = [row for row in range(len(found)) for _ in range(clips.count)]
    mark = "frame" if clips.what == "frames" else "flow"
    size = f"x{clips.side}" if clips.what == "flow" else ""
    names = [f"#{mark}={number}/{clips.count}{size}".encode() for number in range(clips.count)]
    paths = tuple(path + name for path in found.paths for name in names)
    return replace(found.part(rows), kind="video", source=source, root=source, paths=paths)


class ClipSamples:
    """Frames or stacks of flow of clips, as PNM files; used by one thread."""

    def __init__(self, root: Path) -> None:
        clips = clips_of(root)
        if clips is None:
            raise SourceError(f"{root} is no source of videos; write frames:N:PATH or flow:N:PATH")
        self._folder = clips.folder
        self._last: tuple[tuple[bytes, str, int, int], Sequence[bytes] | BadImage] | None = None

    def read(self, path: bytes, need: Need = no_turns) -> bytes:
        sample = _sample_of(path)
        wanted = sample.clip, sample.what, sample.of, sample.side
        if self._last is None or self._last[0] != wanted:  # the rows of a clip lie side by side
            try:
                self._last = wanted, self._samples(sample, need)
            except BadImage as bad:
                self._last = wanted, bad
        found = self._last[1]
        if isinstance(found, BadImage):
            raise BadImage(found.status, str(found))
        return found[sample.number]

    def _samples(self, sample: Sample, need: Need) -> list[bytes]:
        from featx.images.sources.video.decode import flow_stacks, frames

        file = self._folder / os.fsdecode(sample.clip)
        if sample.what == "frame":
            return frames(file, sample.of, need)
        return flow_stacks(file, sample.of, sample.side, need)

    def state(self, path: bytes) -> bytes:
        try:
            found = os.stat(os.path.join(os.fsencode(self._folder), clip_of(path)))
        except (OSError, ValueError):
            return b"missing"
        return b"%d,%d" % (found.st_size, found.st_mtime_ns)

    def alike(self, path: bytes) -> bytes:
        return b"same size"

    def close(self) -> None:
        self._last = None


def refuse_unsuited(manifest: Manifest, network: str, side: int, *, takes_flow: bool) -> None:
    """Raise UsageError for flow and a network of colours, or the other way round, or flow of another size.

    Args:
        side: of the square that the network takes, in pixels.
    """
    clips = clips_of(manifest.source) if manifest.kind == "video" else None
    is_flow = clips is not None and clips.what == "flow"
    if takes_flow and (clips is None or not is_flow or 3 * clips.side != side):
        raise UsageError(f"{network} takes stacks of optical flow of {side // 3} pixels: flow:25x{side // 3}:CLIPS")
    if is_flow and not takes_flow:
        raise UsageError(f"{network} takes colours; {network}-flow takes optical flow, and frames:N:CLIPS are images")


def _sample_of(path: bytes) -> Sample:
    found = _ROW.fullmatch(path)
    if found is None or int(found["number"]) >= int(found["count"]):
        raise BadImage(Status.MISSING, "no frame of a clip is called so")
    side = int(found["side"] or 0)
    return Sample(found["clip"], found["what"].decode(), int(found["number"]), int(found["count"]), side)
