"""The work of an extraction: the blocks that are left, in one process or several, into one file."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featx.artifacts.features_file import FeaturesFile, done_hashes, refuse_other_images, resume
from featx.distributed.shards import Shard
from featx.distributed.work_queue import WorkQueue, refuse_incoherent_disk
from featx.errors import Interrupted, PlanMismatch, TooManyBadImages, allow_more, bad_allowed
from featx.extraction.engine import Engine
from featx.extraction.gpu.cuda import GpuPipeline
from featx.extraction.gpu.device_cache import DeviceCache
from featx.extraction.pipeline import Stages, stream_features
from featx.extraction.plan import ExtractionPlan
from featx.extraction.recipe import default_layer
from featx.extraction.reduction.fit import fitted
from featx.extraction.reduction.projection import kept_in
from featx.extraction.update import Growth, older_version, other_file
from featx.images.manifest import Manifest
from featx.images.sources.scan import scan
from featx.networks.external.code import code_of, trust_code
from featx.networks.weights_file import weights_file
from featx.options.extraction import ExtractConfig
from featx.runtime.environment import read_environment
from featx.runtime.files import disk_errors, identity
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.signals import Stop, graceful_stop
from featx.runtime.text import plural, printable
from featx.runtime.threads import usable_cores
from featx.status import Status
from featx.store.reader import Features
from featx.store.schema import partial_path
from featx.store.writer import FeatureWriter

SHOWN_FAILURES = 3
POLL_S, SAY_AFTER_S = 0.05, 30.0


@dataclass(frozen=True)
class Outcome:
    """A finished features file, and what this run did for it.

    Attributes:
        computed: images of this run; the others were there already.
        stages: None if nothing was computed.
    """

    features: Features
    computed: int = 0
    seconds: float = 0.0
    stages: Stages | None = None


def extract(
    source: Path,
    output: Path,
    config: ExtractConfig,
    *,
    cache: DeviceCache | None = None,
    reporter: Reporter = SILENT,
) -> Features:
    """The features of a source, computed or there already: a step of other commands, in one process.

    Raises:
        as `featx.commands.extract.extract_features`.
    """
    trust_code(config.backbone)
    config = replace(config, layers=config.layers or default_layer(config.backbone))
    images = scan(source, follow_links=config.follow_links)
    with disk_errors(output):
        before = identity(output)
    found = FeaturesFile(output, reporter).take_as_requested(
        config.recorded(),
        images,
        shard=None,
        weights_file=weights_file(config.backbone, config.weights),
        code=code_of(config.backbone),
        projections=kept_in(config.reduce),
    )
    if found is not None:
        refuse_other_images(*found, reporter)
        return found[0]
    job = ExtractionJob(images, output, config, shard=None, queue=None, before=before, cache=cache, reporter=reporter)
    return job.run().features


class ExtractionJob:
    """One extraction: the plan, the work, the account of it."""

    def __init__(
        self,
        manifest: Manifest,
        output: Path,
        config: ExtractConfig,
        *,
        shard: Shard | None,
        queue: WorkQueue | None,
        before: tuple[int, int] | None,
        reporter: Reporter,
        cache: DeviceCache | None = None,
    ) -> None:
        """Plan it and load the network; nothing is computed yet.

        Args:
            manifest: all images, also of the other shards.
            shard: the part of them that is meant; None for all.
            queue: of the processes that fill the file together; None for one that works alone.
            before: identity of the output when this process began to look; None if it was not there.
            cache: where a GPU keeps the layers; None if nobody wants them there.
        """
        self.output, self.config, self.shard, self.queue, self.before = output, config, shard, queue, before
        self.reporter = reporter = reporter if queue is None or queue.is_first else SILENT
        plan = ExtractionPlan(manifest, output, config, shard)
        self.manifest = plan.manifest
        self.distinct = plan.distinct
        reporter.notes(plan.lines())
        plan.recipe = self.recipe = fitted(plan.recipe, self.manifest, output, config, reporter)
        self.engine = Engine(self.recipe, reporter.download)
        if self.engine.gpu is not None:
            self._use_the_gpu(self.engine.gpu, cache)
        self.plan = plan.file(self.engine)
        self.failed: list[str] = []
        self.compared = b""  # hashes of images that were seen to be the ones that are there
        self.lock = threading.Lock()

    def _use_the_gpu(self, gpu: GpuPipeline, cache: DeviceCache | None) -> None:
        if gpu.rows < self.recipe.batch_size:
            self.reporter.note(
                f"note: the GPU's memory holds {plural(gpu.rows, 'image')} of a block of {self.recipe.batch_size} at "
                f"once; a block goes through the network in parts"
            )
        if cache is not None and self.distinct is None:
            cache.make_room(self.engine.specs, len(self.manifest), self.recipe.device)
            self.engine.cache = cache

    def run(self) -> Outcome:
        """Do what is left to be done; the network's memory is freed at the end."""
        try:
            return self._run_in_group()
        finally:
            self.engine.close()

    def _run_in_group(self) -> Outcome:
        queue = self.queue
        if queue is None:
            return self._run()
        try:
            return self._run() if queue.open(self._is_finished) else self._outcome()
        except BaseException as error:
            queue.fail(error)
            raise
        finally:
            queue.close()

    def _take_finished(self) -> Features | None:
        return FeaturesFile(self.output, self.reporter).take_finished(self.plan.provenance, self.manifest)

    def _is_finished(self) -> bool:
        """Whether the first process has given the file its final name since this one was started.

        Raises:
            PlanMismatch: it is another file.
        """
        if partial_path(self.output).exists() or identity(self.output) in (None, self.before):
            return False
        return self._take_finished() is not None

    def _run(self) -> Outcome:
        if self.config.update and (old := older_version(self.output, self.plan)) is not None:
            return self._grow(old)
        if self.config.overwrite and (old := other_file(self.output, self.plan)) is not None:
            return self._replace(old)
        finished = self._take_finished()
        if finished is not None:
            self.compared = done_hashes(finished)
            if not (self.config.retry_failed and finished.failures()):
                return self._outcome()
        opened = self._open()
        if opened is None:  # the others have done everything while this process was starting
            return self._outcome()
        with opened[0] as writer:
            return self._fill(writer, functools.partial(self._compute, writer, opened[1]))

    def _open(self) -> tuple[FeatureWriter, Iterable[int]] | None:
        """The unfinished file, and the blocks that are this process's to do."""
        queue, retry = self.queue, self.config.retry_failed
        if queue is not None and not queue.is_first:
            fingerprint, blocks = queue.listen()
            if fingerprint != self.plan.fingerprint:
                raise PlanMismatch(
                    f"process {queue.rank} of {queue.count} would make another file than the first: all need the "
                    f"same command, images, weights and versions"
                )
            writer = FeatureWriter.join(self.output, self.plan)
            if writer is None:
                with graceful_stop() as stop:
                    self._wait_for_the_end(queue, stop)
                return None
            return writer, queue.claim(blocks)
        if queue is not None:
            refuse_incoherent_disk(self.output)
        if self.output.exists():
            writer = FeatureWriter.open_failed(self.output, self.plan)
        else:
            writer = FeatureWriter.open(self.output, self.plan, retry_failed=retry)
        try:
            made = self.plan.provenance
            resume(
                writer, self.manifest, files=made["source"]["files"], hardware=made["hardware"],
                reporter=self.reporter, compared=self.compared,
            )  # fmt: skip
        except BaseException:
            writer.close()
            raise
        blocks = self._pending_blocks(writer)
        if queue is None:
            return writer, blocks
        writer.share()
        queue.announce(self.plan.fingerprint, blocks)
        return writer, queue.claim(blocks)

    def _grow(self, old: Features) -> Outcome:
        """Copy what the file that is there has of these images, compute the rest, and put the new one there."""
        made, growth = self.plan.provenance, Growth(old, self.manifest, self.plan, self.engine, self.config)
        with FeatureWriter.open(self.output, self.plan, retry_failed=self.config.retry_failed) as writer:
            resume(
                writer, self.manifest, files=made["source"]["files"], hardware=made["hardware"],
                reporter=self.reporter,
            )  # fmt: skip
            growth.compare(self.reporter)

            def compute(stop: Stop) -> Stages:
                return growth.compute(writer, stop, functools.partial(self._stored, writer, stop))

            return self._fill(writer, compute, older=old.fingerprint)

    def _replace(self, old: Features) -> Outcome:
        """Compute everything; at the end it takes the place of the file that is there."""
        made = self.plan.provenance
        with FeatureWriter.open(self.output, self.plan, retry_failed=self.config.retry_failed) as writer:
            resume(
                writer, self.manifest, files=made["source"]["files"], hardware=made["hardware"],
                reporter=self.reporter,
            )  # fmt: skip
            blocks = self._pending_blocks(writer)
            return self._fill(writer, functools.partial(self._compute, writer, blocks), older=old.fingerprint)

    def _fill(self, writer: FeatureWriter, compute: Callable[[Stop], Stages], older: str | None = None) -> Outcome:
        started, before = time.perf_counter(), int((writer.status > Status.PENDING).sum())
        if 0 < before < len(self.manifest):
            self.reporter.note(f"resuming: {before:,} of {plural(len(self.manifest), 'image')} are there already")
        self.reporter.begin("extract", len(self.manifest), before)
        with graceful_stop() as stop:
            self._stop_if_too_many_bad(writer, stop)
            stages = compute(stop)
            if self.queue is not None:
                self._meet_the_others(self.queue, writer, stop)
        self.reporter.end()
        self._raise_if_too_many_bad(writer)
        left = len(writer.pending_blocks(1))
        if stop.signal is not None and left:
            raise Interrupted(
                f"stopped by signal {stop.signal}: {left:,} of {plural(len(self.manifest), 'image')} left. "
                f"Run the same command again to resume",
                128 + stop.signal,
            )
        if self.queue is None or self.queue.is_first:
            writer.finish(older)
        if self.queue is not None and self.queue.is_first:
            self.queue.conclude()
        return self._outcome(len(self.manifest) - before, time.perf_counter() - started, stages)

    def _compute(self, writer: FeatureWriter, blocks: Iterable[int], stop: Stop) -> Stages:
        here = 1 if self.queue is None else read_environment().local_world_size
        return stream_features(
            self.manifest if self.distinct is None else self.distinct.manifest,
            self.engine,
            lambda block, features: self._store(writer, stop, block, features),
            blocks=blocks,
            workers=self.config.workers or max(1, usable_cores() // here),
            stop=stop,
            image_timeout=self.config.image_timeout,
        )

    def _pending_blocks(self, writer: FeatureWriter) -> list[int]:
        """First images of the blocks that are left; images that the list repeats are counted once."""
        size = self.recipe.batch_size
        return writer.pending_blocks(size) if self.distinct is None else self.distinct.pending_blocks(writer, size)

    def _meet_the_others(self, queue: WorkQueue, writer: FeatureWriter, stop: Stop) -> None:
        """The first process: until all others have closed the file. The others: until it has its final name."""
        if stop.is_set():
            queue.drain()
        if not queue.is_first:
            writer.refresh()
            writer.close()
            self._wait_for_the_end(queue, stop)
            return
        started, said = time.monotonic(), False
        queue.check_on_others()
        while stop.signal is None and not writer.hold_alone():
            queue.check_on_others()
            if not said and time.monotonic() - started > SAY_AFTER_S:
                self.reporter.note("waiting for other processes to write the blocks they have begun")
                said = True
            time.sleep(POLL_S)
        writer.refresh()
        self._stop_if_too_many_bad(writer, stop)
        queue.check_on_others()
        left = self._pending_blocks(writer)
        if left and not stop.is_set():
            self.reporter.note(f"{plural(len(left), 'block')} that lost processes had begun are done again")
            self._compute(writer, left, stop)

    def _wait_for_the_end(self, queue: WorkQueue, stop: Stop) -> None:
        try:
            queue.wait_for_the_end(stop)
        except Interrupted:  # the first process may have finished and gone, and the store with it
            if not self._is_finished():
                raise
        if stop.signal is not None and not self._is_finished():
            raise Interrupted(
                f"stopped by signal {stop.signal}; run the same command again to resume", 128 + stop.signal
            )

    def _store(self, writer: FeatureWriter, stop: Stop, block: Any, features: dict[str, Any]) -> None:
        if self.distinct is not None:
            self._stored(writer, stop, *self.distinct.write(writer, block, features))
            return
        writer.write_block(
            block.first,
            features,
            status=block.status,
            sha256=block.sha256,
            orientation=block.orientation,
            decoder=block.decoder,
            reasons=block.reasons,
        )
        rows = [block.first + place for place in block.reasons]
        self._stored(writer, stop, rows, [*block.reasons.values()], len(block.status))

    def _stored(self, writer: FeatureWriter, stop: Stop, failed: list[int], reasons: list[str], count: int) -> None:
        """Account for `count` rows that were written."""
        self.reporter.advance(count if self.queue is None else self.queue.advance(count))
        if failed:
            for row, why in zip(failed, reasons, strict=True):
                self.reporter.detail(f"failed: {self.manifest.name(row)}: {why}")
            with self.lock:
                self.failed += [f"{self.manifest.name(row)}: {why}" for row, why in zip(failed, reasons, strict=True)]
            self._stop_if_too_many_bad(writer, stop)

    def _allowed(self) -> int:
        return bad_allowed(self.config.max_bad, len(self.manifest))

    def _stop_if_too_many_bad(self, writer: FeatureWriter, stop: Stop) -> None:
        if self.queue is not None:
            writer.refresh()
        if int((writer.status > Status.DONE).sum()) > self._allowed():
            stop.set()

    def _raise_if_too_many_bad(self, writer: FeatureWriter) -> None:
        bad = int((writer.status > Status.DONE).sum())
        if bad > self._allowed():
            partial = partial_path(self.output)
            examples = "; ".join(self.failed[:SHOWN_FAILURES]) or f"see featx inspect {partial}"
            if self.manifest.kind in ("list", "csv"):
                examples += f" (paths are relative to {printable(str(self.manifest.root))}, where the list is)"
            raise TooManyBadImages(
                f"{bad:,} of {plural(len(self.manifest), 'image')} failed, --max-bad {self.config.max_bad:g} allows "
                f"{self._allowed()}: {examples}. What is done is kept in {partial}: fix the images and run again "
                f"with --retry-failed, or allow more with {allow_more(bad, len(self.manifest))}"
            )

    def _outcome(self, computed: int = 0, seconds: float = 0.0, stages: Stages | None = None) -> Outcome:
        features = Features(self.output)
        if self.engine.cache is not None:
            self.engine.cache.complete(features)
        return Outcome(features, computed, seconds, stages)
