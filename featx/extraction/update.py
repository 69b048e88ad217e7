"""A features file that grows: what is there is copied, new images and new layers are computed.

The file that is there stays as it is until the new one takes its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from featx.errors import PlanMismatch
from featx.extraction.distinct import Arrays, DistinctImages
from featx.extraction.engine import Engine
from featx.extraction.pipeline import Stages, stream_features
from featx.extraction.provenance import hardware
from featx.images.bad_image import BadImage
from featx.images.block import Block
from featx.images.manifest import Manifest
from featx.images.reader import BlockReader
from featx.options.extraction import ExtractConfig
from featx.runtime.progress import Reporter
from featx.runtime.signals import Stop
from featx.runtime.text import plural, printable
from featx.status import Status
from featx.store.copying import copy_rows, rows_at_once, runs_of
from featx.store.open import open_features
from featx.store.reader import Features
from featx.store.schema import FilePlan, differences, essence
from featx.store.writer import FeatureWriter

Account = Callable[[list[int], list[str], int], None]
_MAY_DIFFER = ("images", "count", "layers", "versions")


def other_file(path: Path, plan: FilePlan) -> Features | None:
    """The finished features file of another plan that is there; None if there is none.

    Raises:
        FileFormatError: what is there is no finished features file.
    """
    if not path.exists():
        return None
    old = open_features(path, check=False)
    return None if old.fingerprint == plan.fingerprint else old


def older_version(path: Path, plan: FilePlan) -> Features | None:
    """The finished file that is to grow; None if there is none, or if it is what is asked for already.

    Raises:
        PlanMismatch: it was made with other settings or versions.
    """
    if not path.exists():
        return None
    old = open_features(path)
    if old.fingerprint == plan.fingerprint:
        return None
    if old.provenance.get("reduction") and {layer.name for layer in plan.layers} - {*old}:
        raise PlanMismatch(f"{path} was made with --reduce: layers cannot be added; choose another output with -o")
    asked = [layer.name for layer in plan.layers]
    if dropped := [name for name in old if name not in asked]:
        every = ",".join([*old, *(name for name in asked if name not in old)])
        raise PlanMismatch(
            f"{path} also holds {', '.join(dropped)}, which --update would drop; name all its layers, -l {every}, or "
            f"make the file anew with --overwrite"
        )
    mine, theirs = essence(plan.provenance), essence(old.provenance)
    for given in (mine, theirs):
        for key in _MAY_DIFFER:
            given.pop(key, None)
    if changed := differences(theirs, mine):
        raise PlanMismatch(
            f"{path} was made with other settings ({changed[0].key} {changed[0].stored}, now {changed[0].asked}), so "
            f"it cannot be updated; choose another output with -o"
        )
    made, now = old.provenance["versions"], plan.provenance["versions"]
    if other := [f"{name} {made[name]}, now {now[name]}" for name in now if made.get(name) != now[name]]:
        raise PlanMismatch(
            f"{path} was made with other versions ({'; '.join(other)}): new rows would be rounded differently. "
            f"Extract again with another -o"
        )
    return old


class Growth:
    """What a growing file keeps of the one that is there, and what is computed for it.

    Attributes:
        row_of: row of the new file -> row of the old one, of images with the same bytes that succeeded.
        missing: layers that the old file does not have.
    """

    def __init__(
        self, old: Features, manifest: Manifest, plan: FilePlan, engine: Engine, config: ExtractConfig
    ) -> None:
        self.old, self.row_of = old, dict[int, int]()
        self.missing = tuple(layer.name for layer in plan.layers if layer.name not in old)
        self._manifest, self._engine, self._config = manifest, engine, config

    def compare(self, reporter: Reporter) -> None:
        """Find the images that are there with the same bytes, under the same name or another.

        Every image is read once; nothing is decoded.
        """
        old, made, now = self.old, self.old.provenance["hardware"], hardware(self._engine)
        if made != now:
            reporter.note(f"note: {old.path} was made on {made}; this is {now}: new rows round differently")
        by_path = {path: row for row, path in enumerate(old.raw_paths) if old.status[row] == Status.DONE}
        by_hash = {old.sha256[row].tobytes(): row for row in by_path.values()}
        reader = BlockReader(self._manifest, self._engine.recipe.preprocess, 1)
        reporter.begin("compare images", len(self._manifest))
        for row, path in enumerate(self._manifest.paths):
            try:
                digest = hashlib.sha256(reader.read_bytes(row)).digest()
            except BadImage:
                digest = b""
            same = by_path.get(path)
            if same is None or old.sha256[same].tobytes() != digest:
                same = by_hash.get(digest)
            if same is not None:
                self.row_of[row] = same
            reporter.advance(1)
        reporter.end()
        kept = {*self._manifest.paths, *(old.raw_paths[row] for row in self.row_of.values())}
        if gone := sum(path not in kept for path in old.raw_paths):
            reporter.note(
                f"note: {plural(gone, 'image')} of {old.path} {'is' if gone == 1 else 'are'} not in "
                f"{printable(str(self._manifest.source))} any more and {'leaves' if gone == 1 else 'leave'} the file"
            )
        without = f", without {', '.join(self.missing)}" if self.missing else ""
        reporter.note(
            f"{len(self.row_of):,} of {plural(len(self._manifest), 'image')} are in {old.path} already{without}"
        )

    def compute(self, writer: FeatureWriter, stop: Stop, account: Account) -> Stages:
        """Write every row that is not there yet: copied, computed, or both.

        Args:
            account: told of the rows that failed, why, and how many were written.
        """
        if not self.missing:
            self._copy(writer, stop, account)
        pending = np.flatnonzero(writer.status == Status.PENDING).tolist()

        new = DistinctImages(self._manifest, [row for row in pending if row not in self.row_of])

        def store_new(block: Block, features: Arrays) -> None:
            account(*new.write(writer, block, features))

        stages = self._stream(self._engine, new, stop, store_new)
        if not self.missing:
            return stages
        recipe = self._engine.recipe
        layers = tuple(layer for layer in recipe.layers if layer.name in self.missing)
        engine = Engine(replace(recipe, layers=layers))

        known = DistinctImages(self._manifest, [row for row in pending if row in self.row_of])

        def store_more(block: Block, features: Arrays) -> None:
            rows, places = known.rows_of(block, writer)
            for part in runs_of(rows, max(1, len(rows))):
                copied = np.array([self.row_of[row] for row in rows[part]], np.intp)
                more = {name: values[places[part]] for name, values in features.items()}
                copy_rows(self.old, copied, writer, rows[part.start], more)
            account([], [], len(rows))

        try:
            return self._stream(engine, known, stop, store_more)
        finally:
            engine.close()

    def _copy(self, writer: FeatureWriter, stop: Stop, account: Account) -> None:
        rows = [row for row in sorted(self.row_of) if writer.status[row] == Status.PENDING]
        for part in runs_of(rows, rows_at_once(sum(layer.bytes_per_image for layer in self.old.layers.values()))):
            if stop.is_set():
                return
            places = np.array([self.row_of[row] for row in rows[part]], np.intp)
            copy_rows(self.old, places, writer, rows[part.start])
            account([], [], len(places))

    def _stream(
        self, engine: Engine, images: DistinctImages, stop: Stop, store: Callable[[Block, Arrays], None]
    ) -> Stages:
        """Compute some images, wherever their rows are."""
        config = self._config
        return stream_features(
            images.manifest, engine, store, blocks=range(0, len(images.manifest), engine.recipe.batch_size),
            workers=config.workers, stop=stop, image_timeout=config.image_timeout,
        )  # fmt: skip
