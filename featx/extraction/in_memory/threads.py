"""Images in memory through an engine, on threads of their own: what `Extractor` and `Predictor` have in common."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featx.errors import FeatxError, ImageError
from featx.extraction.engine import Engine
from featx.extraction.pipeline import Stages, compute_block
from featx.images.block import Block
from featx.images.decode import pillow_settings
from featx.images.inputs import InputDecoder, as_list, is_one_image, name_of
from featx.images.processes.turns import Turns, turns_for
from featx.runtime.text import plural
from featx.runtime.threads import compute_on_one_thread, usable_cores
from featx.status import Failure, Status

ON_ERROR = ("raise", "nan")
SHOWN_FAILURES = 3
_BLOCKS_AT_ONCE = 4  # per thread, of an iterator whose length is not known


class Batch(dict[str, npt.NDArray[Any]]):
    """name -> array (N, ...), row i for image i.

    Attributes:
        failures: the images that could not be used; their rows are NaN.
    """

    failures: list[Failure]


class InMemory:
    """An engine with threads that decode and compute, each on one core, block after block.

    Attributes:
        stages: seconds spent so far, summed over the threads.
    """

    def __init__(self, engine: Engine, *, workers: int | None = None) -> None:
        self.engine, self.stages = engine, Stages()
        self._workers = workers or usable_cores()
        recipe = engine.recipe
        self._decoder = InputDecoder(
            recipe.preprocess, recipe.batch_size, exif=recipe.exif, fast=recipe.decode == "fast",
            turns=Turns(turns_for(self._workers)),
        )  # fmt: skip
        self._process, self._closed = os.getpid(), False
        self._may_be_partial = engine.partial_blocks_agree
        self._pool = _single_threaded_pool(self._workers)

    def __call__(self, images: Any, *, on_error: str = "raise") -> Batch:
        """What the engine gives for one image, or for several in their order.

        Raises:
            ImageError: with on_error="raise", images that cannot be used.
            FeatxError: closed, or used in a process that was forked since.
        """
        if self._closed:
            raise FeatxError("it was closed; make another one")
        if os.getpid() != self._process:
            raise FeatxError(
                "it was loaded before this process was forked, and threads do not survive a fork; make another one "
                "here, or start processes with the method 'spawn'"
            )
        parts, first = [], 0
        for part in self._portions(images):
            parts.append(self._portion(part, first))
            first += len(part)
        found = parts[0] if len(parts) == 1 else _joined(parts)
        if found.failures and on_error == "raise":
            shown = "; ".join(f"{failure.path}: {failure.reason}" for failure in found.failures[:SHOWN_FAILURES])
            raise ImageError(
                f"{plural(len(found.failures), 'image')} of {first:,} cannot be used: {shown}. on_error='nan' gives "
                f"NaN rows for them",
                found.failures,
            )
        return found

    def _portions(self, images: Any) -> Iterator[list[Any]]:
        """All images at once, or, where their number is not known, as many as there is work for all threads."""
        if is_one_image(images) or isinstance(images, Sized) or not hasattr(images, "__iter__"):
            yield as_list(images)
            return
        source, size = iter(images), _BLOCKS_AT_ONCE * self._workers * self.engine.recipe.batch_size
        portion = list(itertools.islice(source, size))
        yield portion
        while portion := list(itertools.islice(source, size)):
            yield portion

    def _portion(self, images: Sequence[Any], first: int) -> Batch:
        batch = self.engine.recipe.batch_size
        found = Batch(
            (name, np.empty((len(images), *shape), dtype)) for name, (shape, dtype) in self.engine.outputs.items()
        )
        found.failures = []
        lock = threading.Lock()
        # A few images are shared among the threads; the bits do not depend on it.
        size = min(batch, max(1, -(-len(images) // self._workers))) if self._may_be_partial else batch

        def compute(start: int) -> None:
            part = images[start : start + size]
            whole = len(part) if self._may_be_partial else batch
            block = self._decoder.images(part, size=whole, keep_encoded=self.engine.claim_decoder())

            def store(_block: Block, outputs: dict[str, npt.NDArray[Any]]) -> None:
                for name, values in outputs.items():
                    found[name][start : start + len(part)] = values

            compute_block(self.engine, self._decoder, block, store, self.stages)
            with lock:
                for place, reason in block.reasons.items():
                    name = name_of(part[place], first + start + place)
                    row, status = first + start + place, int(block.status[place])
                    kind = Status(status).name.lower().replace("_", " ")
                    found.failures.append(Failure(row, name, status, f"{kind}: {reason}"))

        with pillow_settings():
            for done in [self._pool.submit(compute, start) for start in range(0, len(images), size)]:
                done.result()
        found.failures.sort(key=lambda failure: failure.row)
        return found

    def close(self) -> None:
        """End the threads and free the network."""
        if not self._closed:
            self._closed = True
            self._pool.shutdown()
            self.engine.close()


def _joined(parts: Sequence[Batch]) -> Batch:
    found = Batch((name, np.concatenate([part[name] for part in parts])) for name in parts[0])
    found.failures = [failure for part in parts for failure in part.failures]
    return found


def _single_threaded_pool(workers: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch computes on one thread; the host program's own number stays as it is."""
    before, all_started = torch.get_num_threads(), threading.Barrier(workers + 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="featx", initializer=compute_on_one_thread)
    for _ in range(workers):
        pool.submit(all_started.wait)
    all_started.wait()
    torch.set_num_threads(before)  # the threads have also set the default of threads to come
    return pool
