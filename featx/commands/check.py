"""`featx check`: look at the images before the run that needs them."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featx.errors import Interrupted, TooManyBadImages, allow_more, bad_allowed
from featx.heads.labels import count_text
from featx.images.bad_image import BadImage
from featx.images.decode import decode, open_image, pillow_settings
from featx.images.manifest import NO_LABEL, Manifest
from featx.images.reader import BlockReader
from featx.images.sources.scan import scan
from featx.options.extraction import CheckConfig
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.signals import graceful_stop
from featx.runtime.text import format_bytes, format_duration, plural, printable
from featx.runtime.threads import run_workers

if TYPE_CHECKING:
    from featx.extraction.engine import Engine


SHOWN = 5
FEW_CLASSES = 12  # are named
BLOCK = 16


@dataclass(frozen=True)
class BadFile:
    """A file that cannot become features."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class CheckReport(Report):
    """What a source holds.

    Attributes:
        formats, modes: Pillow's names -> images.
        smallest, largest: width and height of the images with the fewest and most pixels.
        duplicates: groups of paths whose files are the same byte for byte.
        two_labels, two_splits: those of them whose labels, or splits, differ.
        seconds, bytes: what an extraction with the given network and layers will take; None if not estimated.
    """

    source: Path
    kind: str
    images: int
    classes: dict[str, int]
    unlabelled: int
    splits: dict[str, int]
    skipped: dict[str, int]
    examples: dict[str, str]
    formats: dict[str, int]
    modes: dict[str, int]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    turned: int
    bad: list[BadFile]
    duplicates: list[list[str]]
    two_labels: list[list[str]]
    two_splits: list[list[str]]
    backbone: str
    layers: str
    seconds: float
    bytes: int
    free: int

    def refuse_too_many_bad(self, max_bad: float) -> None:
        """Raise TooManyBadImages if an extraction with this --max-bad would."""
        allowed = bad_allowed(max_bad, self.images)
        if len(self.bad) > allowed:
            raise TooManyBadImages(
                f"{len(self.bad):,} of {plural(self.images, 'image')} cannot be used, --max-bad {max_bad:g} allows "
                f"{allowed}: an extraction would stop. Allow more with {allow_more(len(self.bad), self.images)}"
            )

    def lines(self) -> list[str]:
        text = [
            f"{self.source} ({self.kind}): {plural(self.images, 'image')}, {self.images - len(self.bad):,} readable"
        ]
        text += [f"skipped: {n:,} {reason} (e.g. {self.examples[reason]})" for reason, n in self.skipped.items()]
        text.append(f"formats: {_counts(self.formats)}; modes: {_counts(self.modes)}")
        if self.smallest and self.largest:
            text.append(f"sizes: {_size(self.smallest)} to {_size(self.largest)} pixels")
        if self.turned:
            text.append(
                f"{plural(self.turned, 'image')} with an EXIF orientation: extract applies it only with --exif"
            )
        if self.classes:
            sizes = sorted(self.classes.values())
            text.append(f"{count_text(list(self.classes), self.kind)} of {sizes[0]:,} to {sizes[-1]:,} images")
            if len(self.classes) <= FEW_CLASSES:
                text[-1] += f": {', '.join(map(printable, self.classes))}"
            alike = Counter(" ".join(name.split()).casefold() for name in self.classes)
            twice = [printable(n) for n in self.classes if alike[" ".join(n.split()).casefold()] > 1]
            if twice:
                text.append(f"classes that differ in case or spaces only: {', '.join(map(repr, twice[:10]))}")
            if len(self.classes) == 1:
                text.append("one class only: a head needs at least two")
        if self.unlabelled and self.classes:
            text.append(f"{plural(self.unlabelled, 'image')} without a label")
        if self.splits:
            text.append(f"splits: {_counts(self.splits)}")
        text += _listing("bad files", [f"{b.path}: {b.kind}: {b.reason}" for b in self.bad])
        for title, groups in (
            ("groups of identical files", self.duplicates),
            ("of them under different labels", self.two_labels),
            ("of them on both sides of a split", self.two_splits),
        ):
            text += _listing(title, [" = ".join(group) for group in groups])
        text.append(
            f"extract -b {self.backbone} -l {self.layers} will take about {format_duration(self.seconds)} and "
            f"{format_bytes(self.bytes)} here; {format_bytes(self.free)} are free in this folder"
        )
        return text


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _listing(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    lines = [f"{len(entries):,} {title}:", *(f"  {entry}" for entry in entries[:SHOWN])]
    return lines + ([f"  and {len(entries) - SHOWN:,} more (--json lists all)"] if len(entries) > SHOWN else [])


def _format_of(content: bytes) -> tuple[str, str]:
    """Format and mode as Pillow names them; of a TIFF that Pillow has no mode for, that there is none."""
    try:
        header = open_image(content)
    except BadImage:
        return "TIFF", "other"
    return str(header.format), header.mode


class _Findings:
    """What the worker threads find out about the images."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.lock = threading.Lock()
        self.formats: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.sizes: dict[int, tuple[int, int]] = {}
        self.turned = 0
        self.bad: dict[int, BadFile] = {}
        self.hashes: dict[int, bytes] = {}

    def look_at(self, row: int, reader: BlockReader) -> None:
        try:
            with reader.turns.image() as need:
                content = reader.read_bytes(row, need)
                with self.lock:
                    self.hashes[row] = hashlib.sha256(content).digest()
                image, orientation = decode(content, need=need)
                kind, mode = _format_of(content)
                size = image.size
                reader.preprocess.pixels(image)
        except (BadImage, ValueError) as bad:
            status = bad.status.name.lower().replace("_", " ") if isinstance(bad, BadImage) else "too large"
            with self.lock:
                self.bad[row] = BadFile(self.manifest.name(row), status, str(bad))
            return
        with self.lock:
            self.formats[kind] += 1
            self.modes[mode] += 1
            self.sizes[row] = size
            self.turned += orientation != 1

    def duplicates(self) -> list[list[int]]:
        groups: dict[bytes, list[int]] = defaultdict(list)
        for row in sorted(self.hashes):
            groups[self.hashes[row]].append(row)
        return [rows for rows in groups.values() if len(rows) > 1]


def check_source(
    source: str | os.PathLike[str], config: CheckConfig | None = None, *, reporter: Reporter = SILENT
) -> CheckReport:
    """Decode every image once and say what an extraction would meet: bad files, duplicates, time, disk.

    Raises:
        SourceError: the source cannot be used at all.
    """
    from featx.extraction.engine import Engine
    from featx.extraction.recipe import Recipe
    from featx.images.processes.turns import Turns, turns_for
    from featx.runtime.threads import usable_cores

    config = config or CheckConfig()
    manifest = scan(source, follow_links=config.follow_links)
    recipe = Recipe.plan(backbone=config.backbone, layers=config.layers, weights="random:0", device="cpu")
    workers = config.workers or usable_cores()
    reader = BlockReader(manifest, recipe.preprocess, recipe.batch_size, turns=Turns(turns_for(workers)))
    findings = _Findings(manifest)
    reporter.begin("check", len(manifest))

    def look(first: int) -> None:
        rows = range(first, min(first + BLOCK, len(manifest)))
        for row in rows:
            findings.look_at(row, reader)
        reporter.advance(len(rows))

    started = time.perf_counter()
    with graceful_stop() as stop, pillow_settings():
        run_workers(range(0, len(manifest), BLOCK), workers, look, stop)
    reporter.end()
    if stop.signal is not None:
        raise Interrupted(f"stopped by signal {stop.signal}; a check keeps nothing", 128 + stop.signal)
    decode_s = time.perf_counter() - started
    network_s = _network_seconds(Engine(recipe)) * len(manifest) / recipe.batch_size / workers
    groups = findings.duplicates()
    by_size = sorted(findings.sizes.values(), key=lambda size: size[0] * size[1])
    return CheckReport(
        source=manifest.source,
        kind=manifest.kind,
        images=len(manifest),
        classes=_label_counts(manifest.labels, manifest.classes),
        unlabelled=sum(label == NO_LABEL for label in manifest.labels),
        splits=_label_counts(manifest.split_of, manifest.splits),
        skipped=manifest.skipped,
        examples=manifest.examples,
        formats=dict(findings.formats.most_common()),
        modes=dict(findings.modes.most_common()),
        smallest=by_size[0] if by_size else None,
        largest=by_size[-1] if by_size else None,
        turned=findings.turned,
        bad=[findings.bad[row] for row in sorted(findings.bad)],
        duplicates=_named(manifest, groups),
        two_labels=_named(manifest, [g for g in groups if len({manifest.labels[row] for row in g}) > 1]),
        two_splits=_named(manifest, [g for g in groups if len({manifest.split_of[row] for row in g}) > 1]),
        backbone=config.backbone,
        layers=",".join(layer.name for layer in recipe.layers),
        seconds=decode_s + network_s,
        bytes=sum(spec.bytes_per_image for spec in recipe.layer_specs()) * len(manifest),
        free=shutil.disk_usage(".").free,
    )


def _network_seconds(engine: Engine) -> float:
    """Seconds for one block on one core, the second time."""
    import numpy as np

    recipe = engine.recipe
    side = recipe.preprocess.crop
    pixels = np.zeros((recipe.batch_size, 3, side, side), np.uint8)
    engine(pixels)
    started = time.perf_counter()
    engine(pixels)
    return time.perf_counter() - started


def _label_counts(labels: tuple[int, ...], names: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(labels)
    return {name: counts[index] for index, name in enumerate(names)}


def _named(manifest: Manifest, groups: list[list[int]]) -> list[list[str]]:
    return [[manifest.name(row) for row in group] for group in groups]
