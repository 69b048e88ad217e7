"""Images of many requests share blocks of the network.

There is no waiting for a block to fill: every thread takes an image, decodes it, takes the next one that has queued
meanwhile, up to a block, and computes. Alone an image is computed at once; under load blocks fill by themselves. What
an image becomes does not depend on what it shares a block with, bit for bit.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import FeatxError
from featx.extraction.engine import Engine
from featx.extraction.pipeline import Stages, compute_block
from featx.images.block import Block, empty_block
from featx.images.decode import pillow_settings
from featx.images.inputs import InputDecoder
from featx.images.processes.turns import Turns, turns_for
from featx.runtime.threads import compute_on_one_thread
from featx.service.metrics import Metrics
from featx.status import Status

MOST_IN_BLOCK = 16  # images; larger blocks cost latency and gain nothing
_log = logging.getLogger("featx.service")


class Overloaded(FeatxError):
    """The queue is full."""


@dataclass(frozen=True)
class Row:
    """What became of one image.

    Attributes:
        status: "done", or a kind of failure in lower case with underscores; "failed" for an error of the service.
        reason: why it failed.
        features: layer -> its values, not pooled; empty if it failed.
    """

    status: str
    reason: str
    sha256: str
    features: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.status == "done"


@dataclass
class _Job:
    content: bytes
    future: Future[Row] = field(default_factory=Future)


class Batcher:
    """Threads, each on one core, that compute what is in a bounded queue.

    Args:
        capacity: images that may wait; more are refused.
        timeout_s: to decode one image.
    """

    def __init__(self, engine: Engine, *, workers: int, capacity: int, timeout_s: float, metrics: Metrics) -> None:
        self.engine, self.capacity, self._metrics = engine, capacity, metrics
        recipe = engine.recipe
        self._decoder = InputDecoder(
            recipe.preprocess, recipe.batch_size, exif=recipe.exif, fast=recipe.decode == "fast",
            timeout_s=timeout_s, turns=Turns(turns_for(workers)),
        )  # fmt: skip
        self._may_be_partial = engine.partial_blocks_agree
        self._at_once = min(recipe.batch_size, MOST_IN_BLOCK) if self._may_be_partial else recipe.batch_size
        self._queue: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [self._start(n) for n in range(workers)]

    def submit(self, images: Sequence[bytes], *, first: bool = False) -> list[Future[Row]]:
        """Queue some images; the futures give their rows.

        Args:
            first: before everything that waits, and however many do; for the probe of readiness.

        Raises:
            Overloaded: they do not fit into the queue, none was queued.
        """
        jobs = [_Job(content) for content in images]
        with self._changed:
            if self._closed:
                raise Overloaded("the service is shutting down")
            if not first and len(self._queue) + len(jobs) > self.capacity:
                raise Overloaded(f"{len(self._queue)} images are waiting, at most {self.capacity} may")
            if first:
                self._queue.extendleft(reversed(jobs))
            else:
                self._queue.extend(jobs)
            self._changed.notify(len(jobs))
        self.restart_dead()
        return [job.future for job in jobs]

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    def restart_dead(self) -> int:
        """Start threads anew that have ended although nobody closed this; how many there were."""
        with self._changed:
            dead = [n for n, thread in enumerate(self._threads) if not thread.is_alive() and not self._closed]
            for n in dead:
                self._threads[n] = self._start(n)
        if dead:
            self._metrics.restarts.inc(len(dead))
            _log.error("featx: %d computing threads had ended and were started again", len(dead))
        return len(dead)

    def close(self) -> None:
        """Compute what is queued, end the threads and free the network."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.engine.close()

    def _start(self, number: int) -> threading.Thread:
        thread = threading.Thread(target=self._run, name=f"featx-{number}", daemon=True)
        thread.start()
        return thread

    def _next(self, *, wait: bool) -> _Job | None:
        """The next image that somebody still waits for; None if there is none, or this was closed."""
        with self._changed:
            while True:
                while self._queue:
                    job = self._queue.popleft()
                    if job.future.set_running_or_notify_cancel():
                        return job
                    self._metrics.dropped.inc()
                if not wait or self._closed:
                    return None
                self._changed.wait()

    def _run(self) -> None:
        compute_on_one_thread()
        shape = self.engine.recipe.preprocess.shape
        whole = empty_block(self._at_once, self._at_once, shape, keep_encoded=False)
        with pillow_settings():
            while (job := self._next(wait=True)) is not None:
                jobs = [job]
                try:
                    block = self._filled(whole, jobs)
                    self._compute(jobs, block)
                except BaseException as error:  # whatever it is, nobody may wait for ever
                    for one in jobs:
                        if not one.future.done():
                            one.future.set_exception(error)
                    raise

    def _filled(self, whole: Block, jobs: list[_Job]) -> Block:
        """A block of the first job and all that have queued meanwhile, which are added to `jobs`."""
        whole.status[:], whole.orientation[:] = Status.DONE, 1
        whole.reasons.clear()
        started = time.perf_counter()
        place = 0
        while True:
            self._decode(whole, place, jobs[place])
            place += 1
            following = self._next(wait=False) if place < self._at_once else None
            if following is None:
                break
            jobs.append(following)
        self._metrics.seconds.labels("decode").observe(time.perf_counter() - started)
        if not self._may_be_partial:
            whole.pixels[place:] = 0
        return _beginning(whole, place, pixels=place if self._may_be_partial else self._at_once)

    def _decode(self, block: Block, place: int, job: _Job) -> None:
        block.sha256[place] = np.frombuffer(hashlib.sha256(job.content).digest(), np.uint8)
        try:
            self._decoder.put(block, place, job.content)
        except Exception as error:
            block.status[place], block.reasons[place] = Status.DAMAGED, _unexpected(error)

    def _compute(self, jobs: list[_Job], block: Block) -> None:
        rows: list[Row] = []

        def keep(_block: Block, outputs: dict[str, npt.NDArray[Any]]) -> None:
            for place in range(len(jobs)):
                done = block.status[place] == Status.DONE
                features = {name: values[place].copy() for name, values in outputs.items()} if done else {}
                rows.append(_row(block, place, features))

        started = time.perf_counter()
        try:
            compute_block(self.engine, self._decoder, block, keep, Stages())
        except Exception as error:
            if len(jobs) > 1:  # one image's NaN must not be its neighbours' error
                for place, job in enumerate(jobs):
                    self._compute([job], _alone(block, place, self._at_once if not self._may_be_partial else 1))
                return
            reason = str(error) if isinstance(error, FeatxError) else _unexpected(error)
            rows = [Row("failed", reason, block.sha256[0].tobytes().hex())]
        self._metrics.seconds.labels("network").observe(time.perf_counter() - started)
        self._metrics.batch.observe(len(jobs))
        for job, row in zip(jobs, rows, strict=True):
            self._metrics.images.labels(row.status).inc()
            job.future.set_result(row)


def _unexpected(error: Exception) -> str:
    """What is told of an error that should not be able to happen: a number by which it is found in the log."""
    number = secrets.token_hex(4)
    _log.exception("featx: error %s", number, exc_info=error)
    return f"unexpected {type(error).__name__}; it is in the log as {number}"


def _row(block: Block, place: int, features: dict[str, npt.NDArray[Any]]) -> Row:
    status = Status(block.status[place]).name.lower()
    return Row(status, block.reasons.get(place, ""), block.sha256[place].tobytes().hex(), features)


def _beginning(block: Block, count: int, *, pixels: int) -> Block:
    """The first images of a block, without copying; pixels of some more that are padding."""
    return Block(
        0, block.pixels[:pixels], block.status[:count], block.sha256[:count], dict(block.reasons),
        block.orientation[:count], block.decoder[:count], None,
    )  # fmt: skip


def _alone(block: Block, place: int, size: int) -> Block:
    """One image of a block as a block, with pixels for `size`."""
    alone = empty_block(1, size, block.pixels.shape[2:], keep_encoded=False)
    alone.pixels[0], alone.status[0], alone.sha256[0] = block.pixels[place], block.status[place], block.sha256[place]
    if place in block.reasons:
        alone.reasons[0] = block.reasons[place]
    return alone
