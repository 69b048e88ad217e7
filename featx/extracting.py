"""The work of `featx extract`: the blocks and the file; see `featx.extract` for the verb."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featx.activations import Extractor, usable_cores
from featx.config import ExtractConfig
from featx.errors import Interrupted, PlanMismatch, TooManyBadImages, allow_more, bad_allowed
from featx.extract import ExtractReport, identity, report_on
from featx.extraction_plan import ExtractionPlan
from featx.images.scan import Manifest
from featx.on_gpu import GpuPipeline
from featx.progress import SILENT, Reporter, Stop, graceful_stop
from featx.report import printable
from featx.resident import ResidentLayers
from featx.same_images import done_hashes, refuse_other_images, take_up
from featx.shards import Shard
from featx.store.reader import Features
from featx.store.schema import DONE, differences, essence, partial_path
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
        resident: ResidentLayers | None = None,
    ) -> None:
        """Plan it and load the network; nothing is computed yet.

        Args:
            manifest: all images, also of the other shards.
            shard: the part of them that is meant; None for all.
            group: the processes that fill the file together; None for one that works alone.
            before: identity of the output when this process began to look; None if it was not there.
            resident: where a GPU leaves the layers; None if nobody wants them there.
        """
        self.output, self.config, self.shard, self.group, self.before = output, config, shard, group, before
        self.reporter = reporter = reporter if group is None or group.is_first else SILENT
        plan = ExtractionPlan(manifest, output, config, shard)
        self.recipe, self.whole, self.manifest = plan.recipe, plan.whole, plan.manifest
        for line in plan.lines():
            reporter.note(line)
        self.extractor = Extractor(self.recipe, reporter.download)
        if self.extractor.gpu is not None:
            self._use_the_gpu(self.extractor.gpu, resident)
        self.plan = plan.file(self.extractor)
        self.failed: list[str] = []
        self.compared = b""  # hashes of images that were seen to be the ones that are there
        self.lock = threading.Lock()

    def _use_the_gpu(self, gpu: GpuPipeline, resident: ResidentLayers | None) -> None:
        if gpu.rows < self.recipe.batch_size:
            self.reporter.note(
                f"note: the GPU's memory holds {gpu.rows} images of a block of {self.recipe.batch_size} at once; a "
                f"block goes through the network in parts"
            )
        if resident is not None:
            resident.make_room(self.extractor.specs, len(self.manifest), self.recipe.device)
            self.extractor.resident = resident

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
        try:
            state = self.plan.provenance["source"]["files"]
            take_up(writer, self.manifest, state, self.reporter, self.compared)
        except BaseException:
            writer.close()
            raise
        blocks = writer.pending_blocks(self.recipe.batch_size)
        if group is None:
            return writer, blocks
        writer.share()
        group.announce(self.plan.fingerprint, blocks)
        return writer, group.claim(blocks)

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
        features = Features(self.output)
        if self.extractor.resident is not None:
            self.extractor.resident.complete(features)
        return report_on(features, self.whole, self.config, computed, seconds, stages)

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
        self.compared = done_hashes(features)


def _changed_images(features: Features, manifest: Manifest) -> str:
    have, want = set(features.raw_paths), set(manifest.paths)
    new, gone = sorted(want - have), sorted(have - want)
    parts = []
    for word, paths in (("new", new), ("gone", gone)):
        if paths:
            parts.append(f"{len(paths)} {word} (first: {os.fsdecode(paths[0])!r})")
    return "images: " + (", ".join(parts) or "the same, with other labels, splits or order")
