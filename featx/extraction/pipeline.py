"""Images in, features out, block by block: what `extract`, `predict` and `evaluate` have in common.

On a CPU every worker thread is a pipeline of its own: it reads, decodes, computes and hands over one block after
the other, using one core. So the result cannot depend on the number of workers, decoding overlaps the network
without being arranged, and memory is bounded by the number of workers whatever the number of images. On a GPU
the workers read and decode, or let the GPU decode, and their blocks follow each other through it: see `cuda`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.extraction.engine import Engine
from featx.images.bad_image import IMAGE_TIMEOUT_S
from featx.images.block import Block
from featx.images.decode import pillow_settings
from featx.images.manifest import Manifest
from featx.images.processes.pool import decoding
from featx.images.processes.turns import Turns, turns_for
from featx.images.reader import BlockDecoder, BlockReader
from featx.runtime.threads import compute_on_one_thread, one_thread, run_workers, usable_cores
from featx.status import Status

STAGES = ("read", "decode", "network", "write")


@dataclass
class Stages:
    """Seconds the workers spent on each stage, summed over workers."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **seconds: float) -> None:
        with self.lock:
            for stage, value in seconds.items():
                self.seconds[stage] += value

    def shares(self) -> dict[str, float]:
        """Stage -> share of the workers' time."""
        total = sum(self.seconds.values()) or 1.0
        return {stage: value / total for stage, value in self.seconds.items()}

    @property
    def bound_by(self) -> str:
        """What takes most of the time: decode, network or disk."""
        shares = self.shares()
        groups = {
            "decode": shares["decode"],
            "network": shares["network"],
            "disk": shares["read"] + shares["write"],
        }
        return max(groups, key=lambda group: groups[group])


Sink = Callable[[Block, dict[str, npt.NDArray[Any]]], None]


def stream_features(
    manifest: Manifest,
    engine: Engine,
    sink: Sink,
    *,
    blocks: Iterable[int],
    workers: int | None,
    stop: threading.Event,
    image_timeout: float = IMAGE_TIMEOUT_S,
) -> Stages:
    """Compute the features of some blocks and hand each to `sink`, from several threads, in any order.

    Args:
        sink: gets the block and {layer: (B, ...)}, B without padding, failed images' rows NaN.
        blocks: their first rows, multiples of the recipe's batch size.
        workers: threads; by default one per core this process may use.
        stop: set it to finish the blocks in hand and return.
        image_timeout: seconds to decode one image.
    """
    recipe, stages = engine.recipe, Stages()
    count = workers or usable_cores()
    reader = BlockReader(
        manifest, recipe.preprocess, recipe.batch_size, exif=recipe.exif, fast=recipe.decode == "fast",
        timeout_s=image_timeout, turns=Turns(turns_for(count)),
    )  # fmt: skip

    def work(first: int) -> None:
        block = reader.block(first, keep_encoded=engine.claim_decoder())
        compute_block(engine, reader, block, sink, stages)

    with pillow_settings(), one_thread(), decoding(reader, count) as reader:
        run_workers(blocks, count, work, stop, prepare=compute_on_one_thread)
    return stages


def compute_block(engine: Engine, reader: BlockDecoder, block: Block, sink: Sink, stages: Stages) -> None:
    """Compute the features of one decoded block and hand them to `sink`, failed images' rows NaN."""
    start, count = time.perf_counter(), len(block.status)
    with engine.features(block, reader) as features:
        for values in features.values():
            values[:count][block.status != Status.DONE] = np.nan
        middle = time.perf_counter()
        sink(block, {name: values[:count] for name, values in features.items()})
    end = time.perf_counter()
    network = middle - start - block.device_decode_s
    stages.add(read=block.read_s, decode=block.decode_s + block.device_decode_s, network=network, write=end - middle)
