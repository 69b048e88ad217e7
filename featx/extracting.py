"""The work of `featx extract`: the plan, the blocks, the file; see `featx.extract` for the verb."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featx.activations import Extractor, hardware, usable_cores, versions
from featx.config import ExtractConfig
from featx.errors import DiskError, Interrupted, PlanMismatch, TooManyBadImages, UsageError, allow_more, bad_allowed
from featx.extract import ExtractReport, identity, report_on
from featx.images.contents import files_state
from featx.images.scan import Manifest
from featx.networks.pooling import parse_pooling
from featx.options import command_line
from featx.progress import SILENT, Reporter, Stop, format_bytes, graceful_stop
from featx.recipe import Recipe, plan_recipe
from featx.report import printable, table
from featx.same_images import refuse_other_images
from featx.shards import Shard
from featx.store.reader import Features
from featx.store.schema import DONE, FilePlan, differences, essence, partial_path
from featx.store.writer import FeatureWriter
from featx.streaming import Stages, stream_features
from featx.together import Group, processes_here, refuse_incoherent_disk

SHOWN_FAILURES = 3
POLL_S, SAY_AFTER_S = 0.05, 30.0


class Extraction:
    """One extraction: the plan, the work, the account of it."""

    def __init__(
        self,
        manifest: Manifest,
        output: Path,
        config: ExtractConfig,
        *,
        shard: Shard | None,
        group: Group | None,
        before: tuple[int, int] | None,
        reporter: Reporter,
    ) -> None:
        """Plan it and load the network; nothing is computed yet.

        Args:
            manifest: all images, also of the other shards.
            shard: the part of them that is meant; None for all.
            group: the processes that fill the file together; None for one that works alone.
            before: identity of the output when this process began to look; None if it was not there.
        """
        self.output, self.config, self.shard, self.group, self.before = output, config, shard, group, before
        self.reporter = reporter = reporter if group is None or group.is_first else SILENT
        self.recipe: Recipe = plan_recipe(
            backbone=config.backbone,
            layers=config.layers,
            weights=config.weights,
            pooling=parse_pooling(config.pool),
            precision=config.precision,
            dtype=config.dtype,
            device=config.device,
            batch_size=config.batch_size,
            resize=config.resize,
            crop=config.crop,
            squash=config.squash,
            exif=config.exif,
            mirror=config.mirror,
            decode=config.decode,
            plain=config.plain,
        )
        self.whole, self.manifest = manifest, self._part_of(manifest)
        self._refuse_what_cannot_fit()
        for line in self.plan_lines():
            reporter.note(line)
        self.extractor = Extractor(self.recipe, reporter.download)
        gpu = self.extractor.gpu
        if gpu is not None and gpu.rows < self.recipe.batch_size:
            reporter.note(
                f"note: the GPU's memory holds {gpu.rows} images of a block of {self.recipe.batch_size} at once; a "
                f"block goes through the network in parts"
            )
        self.plan = self._file_plan(self.extractor.weights_sha256)
        self.failed: list[str] = []
        self.lock = threading.Lock()

    def _part_of(self, manifest: Manifest) -> Manifest:
        if self.shard is None:
            return manifest
        rows = self.shard.rows(len(manifest), self.recipe.batch_size)
        if not rows:
            size = self.recipe.batch_size
            raise UsageError(
                f"--shard {self.shard} would be empty: {len(manifest):,} images are {-(-len(manifest) // size):,} "
                f"blocks of {size}. Use fewer shards, or a smaller --batch-size"
            )
        return manifest.part(rows)

    def plan_lines(self) -> list[str]:
        """What will be done, before it is."""
        manifest, recipe = self.manifest, self.recipe
        count = len(manifest)
        classes = f", {len(manifest.classes)} classes" if manifest.classes else ", no labels"
        part = f" (part {self.shard} of {len(self.whole):,})" if self.shard else ""
        title = f"{count:,} images{part}{classes}; {recipe.backbone.name}, weights {recipe.weights.name}, "
        title += f"{recipe.precision} on {recipe.device}, {recipe.batch_size} images per block"
        rows = [
            [
                spec.name,
                spec.node,
                spec.relu,
                spec.shape,
                spec.dtype,
                format_bytes(spec.bytes_per_image * count),
            ]
            for spec in recipe.layer_specs()
        ]
        lines = [title, *table(["layer", "node", "ReLU", "shape", "type", "in all"], rows, left=3)]
        free = shutil.disk_usage(_existing_parent(self.output)).free
        lines.append(f"{format_bytes(self._bytes_needed())} for {self.output}; {format_bytes(free)} are free there")
        if recipe.weights.seed is not None:
            lines.append(
                "note: these weights are random: the features show the machinery, not what a network learned"
            )
        return lines

    def _bytes_needed(self) -> int:
        return sum(spec.bytes_per_image for spec in self.recipe.layer_specs()) * len(self.manifest)

    def _refuse_what_cannot_fit(self) -> None:
        if self.output.exists() or partial_path(self.output).exists():
            return  # its space is reserved already
        needed, folder = self._bytes_needed(), _existing_parent(self.output)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DiskError(
                f"{self.output} needs {format_bytes(needed)}; {format_bytes(free)} are free in {folder}. Ask for "
                f"fewer or later layers, --pool avg, or --dtype float16, or choose another disk with -o"
            )

    def _file_plan(self, weights_sha256: str) -> FilePlan:
        manifest = self.manifest
        provenance: dict[str, Any] = {
            **self.recipe.describe(weights_sha256),
            "request": self.config.recorded(),
            "command": command_line("extract", "SOURCE", self.config),
            "source": {
                "path": os.path.abspath(manifest.source),
                "kind": manifest.kind,
                "files": files_state(manifest),
            },
            "images": manifest.digest,
            "count": len(manifest),
            "versions": versions(),
            "hardware": hardware(self.extractor),
        }
        if self.shard is not None:
            provenance["shard"] = self.shard.describe(self.whole)
        return FilePlan(
            manifest.paths,
            manifest.labels,
            manifest.classes,
            manifest.split_of,
            manifest.splits,
            self.recipe.layer_specs(),
            _portable(provenance),
        )

    def go(self) -> ExtractReport:
        """Do what is left to be done; the network's memory on a GPU is given free at the end."""
        try:
            return self._go_together()
        finally:
            self.extractor.close()

    def _go_together(self) -> ExtractReport:
        group = self.group
        if group is None:
            return self._go()
        try:
            return self._go() if group.open(self._is_finished) else self._report(0, 0.0, None)
        except BaseException as error:
            group.fail(error)
            raise
        finally:
            group.close()

    def _is_finished(self) -> bool:
        """Whether the first process has given the file its final name since this one was started.

        Raises:
            PlanMismatch: it is another file.
        """
        if partial_path(self.output).exists() or identity(self.output) in (None, self.before):
            return False
        self._compare_with_finished()
        return True

    def _go(self) -> ExtractReport:
        if self.output.exists():
            self._compare_with_finished()
            if not (self.config.retry_failed and Features(self.output).failures()):
                return self._report(0, 0.0, None)
        opened = self._open()
        if opened is None:  # the others have done everything while this process was starting
            return self._report(0, 0.0, None)
        with opened[0] as writer:
            return self._fill(writer, opened[1])

    def _open(self) -> tuple[FeatureWriter, Iterable[int]] | None:
        """The unfinished file, and the blocks that are this process's to do."""
        group, retry = self.group, self.config.retry_failed
        if group is not None and not group.is_first:
            fingerprint, blocks = group.listen()
            if fingerprint != self.plan.fingerprint:
                raise PlanMismatch(
                    f"process {group.rank} of {group.count} would make another file than the first: all need the "
                    f"same command, images, weights and versions"
                )
            writer = FeatureWriter.join(self.output, self.plan)
            if writer is None:
                with graceful_stop() as stop:
                    self._wait_for_the_end(group, stop)
                return None
            return writer, group.claim(blocks)
        if group is not None:
            refuse_incoherent_disk(self.output)
        if self.output.exists():
            writer = FeatureWriter.open_failed(self.output, self.plan)
        else:
            writer = FeatureWriter.open(self.output, self.plan, retry_failed=retry)
        self._refuse_other_images(writer)
        blocks = writer.pending_blocks(self.recipe.batch_size)
        if group is None:
            return writer, blocks
        writer.share()
        group.announce(self.plan.fingerprint, blocks)
        return writer, group.claim(blocks)

    def _refuse_other_images(self, writer: FeatureWriter) -> None:
        if (writer.status == DONE).any():
            try:
                have = Features(partial_path(self.output))
                refuse_other_images(have, self.manifest, self.reporter)
                old, new = (made["source"].get("files") for made in (have.provenance, self.plan.provenance))
                writer.replace_state(old, new)
            except BaseException:
                writer.close()
                raise

    def _fill(self, writer: FeatureWriter, blocks: Iterable[int]) -> ExtractReport:
        started, before = time.perf_counter(), int((writer.status > 0).sum())
        if 0 < before < len(self.manifest):
            self.reporter.note(f"resuming: {before:,} of {len(self.manifest):,} images are there already")
        self.reporter.begin("extract", len(self.manifest), before)
        with graceful_stop() as stop:
            self._stop_if_too_many_bad(writer, stop)
            stages = self._compute(writer, blocks, stop)
            if self.group is not None:
                self._meet_the_others(self.group, writer, stop)
        self.reporter.end()
        self._raise_if_too_many_bad(writer)
        left = len(writer.pending_blocks(1))
        if stop.signal is not None and left:
            raise Interrupted(
                f"stopped by signal {stop.signal}: {left:,} of {len(self.manifest):,} images are left. "
                f"Run the same command again to resume",
                128 + stop.signal,
            )
        if self.group is None or self.group.is_first:
            writer.finish()
        if self.group is not None and self.group.is_first:
            self.group.conclude()
        return self._report(len(self.manifest) - before, time.perf_counter() - started, stages)

    def _compute(self, writer: FeatureWriter, blocks: Iterable[int], stop: Stop) -> Stages:
        here = 1 if self.group is None else processes_here()
        return stream_features(
            self.manifest,
            self.extractor,
            lambda block, features: self._store(writer, stop, block, features),
            blocks=blocks,
            workers=self.config.workers or max(1, usable_cores() // here),
            stop=stop,
        )

    def _meet_the_others(self, group: Group, writer: FeatureWriter, stop: Stop) -> None:
        """The first process: until all others have let go of the file. The others: until it has its final name."""
        if stop.is_set():
            group.drain()
        if not group.is_first:
            writer.refresh()
            writer.close()
            self._wait_for_the_end(group, stop)
            return
        started, said = time.monotonic(), False
        group.check_on_others()
        while stop.signal is None and not writer.hold_alone():
            group.check_on_others()
            if not said and time.monotonic() - started > SAY_AFTER_S:
                self.reporter.note("waiting for other processes to write the blocks they have begun")
                said = True
            time.sleep(POLL_S)
        writer.refresh()
        self._stop_if_too_many_bad(writer, stop)
        group.check_on_others()
        left = writer.pending_blocks(self.recipe.batch_size)
        if left and not stop.is_set():
            self.reporter.note(f"{len(left):,} blocks that lost processes had begun are done again")
            self._compute(writer, left, stop)

    def _wait_for_the_end(self, group: Group, stop: Stop) -> None:
        try:
            group.wait_for_the_end(stop)
        except Interrupted:  # the first process may have finished and gone, and the store with it
            if not self._is_finished():
                raise
        if stop.signal is not None and not self._is_finished():
            raise Interrupted(
                f"stopped by signal {stop.signal}; run the same command again to resume", 128 + stop.signal
            )

    def _store(self, writer: FeatureWriter, stop: Stop, block: Any, features: dict[str, Any]) -> None:
        writer.write_block(
            block.first,
            features,
            status=block.status,
            sha256=block.sha256,
            orientation=block.orientation,
            decoder=block.decoder,
            reasons=block.reasons,
        )
        count = len(block.status)
        self.reporter.advance(count if self.group is None else self.group.advance(count))
        if block.reasons:
            with self.lock:
                for place, reason in block.reasons.items():
                    self.failed.append(f"{self.manifest.name(block.first + place)}: {reason}")
            self._stop_if_too_many_bad(writer, stop)

    def _allowed(self) -> int:
        return bad_allowed(self.config.max_bad, len(self.manifest))

    def _stop_if_too_many_bad(self, writer: FeatureWriter, stop: Stop) -> None:
        if self.group is not None:
            writer.refresh()
        if int((writer.status > DONE).sum()) > self._allowed():
            stop.set()

    def _raise_if_too_many_bad(self, writer: FeatureWriter) -> None:
        bad = int((writer.status > DONE).sum())
        if bad > self._allowed():
            partial = partial_path(self.output)
            examples = "; ".join(self.failed[:SHOWN_FAILURES]) or f"see featx inspect {partial}"
            if self.manifest.kind in ("list", "csv"):
                examples += f" (paths count from {printable(str(self.manifest.root))}, where the list is)"
            raise TooManyBadImages(
                f"{bad} of {len(self.manifest)} images are bad, --max-bad {self.config.max_bad:g} allows "
                f"{self._allowed()}: {examples}. What is done is kept in {partial}: mend the images and run again "
                f"with --retry-failed, or allow more with {allow_more(bad, len(self.manifest))}"
            )

    def _report(self, computed: int, seconds: float, stages: Stages | None) -> ExtractReport:
        return report_on(Features(self.output), self.whole, self.config, computed, seconds, stages)

    def _compare_with_finished(self) -> None:
        features = Features(self.output)
        have, want = essence(features.provenance), essence(self.plan.provenance)
        named = differences(have, want)
        if have["images"] != want["images"]:
            named = [
                _changed_images(features, self.manifest),
                *(n for n in named if not n.startswith(("images:", "count:"))),
            ]
        named = [n for n in named if not n.startswith("versions.")]
        if named:
            raise PlanMismatch(
                f"{self.output} exists and was made by another plan: {'; '.join(named[:3])}. "
                f"Choose another output with -o, or delete it"
            )
        refuse_other_images(features, self.manifest, self.reporter)


def _portable(provenance: dict[str, Any]) -> dict[str, Any]:
    """The same with text that JSON can hold: undecodable bytes of a path as backslash escapes."""
    import json

    text: str = json.dumps(provenance).encode("ascii").decode()
    plain: dict[str, Any] = json.loads(text)
    return plain


def _changed_images(features: Features, manifest: Manifest) -> str:
    have, want = set(features.raw_paths), set(manifest.paths)
    new, gone = sorted(want - have), sorted(have - want)
    parts = []
    for word, paths in (("new", new), ("gone", gone)):
        if paths:
            parts.append(f"{len(paths)} {word} (first: {os.fsdecode(paths[0])!r})")
    return "images: " + (", ".join(parts) or "the same, with other labels, splits or order")


def _existing_parent(path: Path) -> Path:
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder
