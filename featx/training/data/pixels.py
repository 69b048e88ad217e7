"""Training images: decoded once and kept while they fit into memory, else decoded again for every step."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.images.bad_image import BadImage
from featx.images.decode import pillow_settings
from featx.images.manifest import Manifest
from featx.images.preprocess import Preprocess
from featx.images.processes.pool import decoding
from featx.images.processes.turns import Turns, turns_for
from featx.images.reader import BlockReader
from featx.runtime.device import upload
from featx.runtime.memory import free_memory
from featx.runtime.progress import Reporter
from featx.runtime.threads import run_workers
from featx.status import Status

Rows = npt.NDArray[np.intp]
_ROWS_AT_ONCE = 32  # decoded by one worker at the start


class Pixels:
    """Pixels of some rows of a manifest, (3, S, S) uint8 each.

    Attributes:
        rows: those that could be decoded, in the order given.
        bad: row -> why it could not be.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocess: Preprocess,
        rows: Rows,
        *,
        exif: bool,
        memory_bytes: int,
        device: torch.device,
        workers: int,
        reporter: Reporter,
    ) -> None:
        """Decode all rows once, to know which can be, and keep them if they fit into `memory_bytes`.

        On a GPU they are kept there if a third of what is free holds them: the network needs the rest.
        """
        self._device = device
        self._workers = workers
        self._side = preprocess.crop
        self._pool: ThreadPoolExecutor | None = None
        self._stack = contextlib.ExitStack()
        reader = BlockReader(manifest, preprocess, _ROWS_AT_ONCE, exif=exif, turns=Turns(turns_for(workers)))
        self._reader = self._stack.enter_context(decoding(reader, self._workers))
        self.bad: dict[int, str] = {}
        kept = None
        if len(rows) * 3 * self._side**2 <= memory_bytes:
            kept = np.zeros((len(rows), 3, self._side, self._side), np.uint8)
        good = np.ones(len(rows), bool)
        reporter.begin("decode", len(rows))

        def load(first: int) -> None:
            part = rows[first : first + _ROWS_AT_ONCE].tolist()
            block = self._reader.rows(part, size=len(part))
            good[first : first + len(part)] = block.status == Status.DONE
            self.bad.update((part[place], reason) for place, reason in block.reasons.items())
            if kept is not None:
                kept[first : first + len(part)] = block.pixels
            reporter.advance(len(part))

        try:
            with pillow_settings():
                run_workers(range(0, len(rows), _ROWS_AT_ONCE), self._workers, load, threading.Event())
        except BaseException:
            self.close()
            raise
        reporter.end()
        self.rows = rows[good]
        self._kept: Tensor | None = None
        if kept is not None:
            self._kept = torch.from_numpy(kept if good.all() else kept[good])
            if device.type == "cuda" and self._kept.nbytes <= free_memory(device) // 3:
                self._kept = self._kept.to(device)
        self._pool = ThreadPoolExecutor(self._workers) if kept is None else None
        if kept is not None:
            self.close()
        self._ahead: dict[bytes, list[Future[npt.NDArray[np.uint8]]]] = {}

    def close(self) -> None:
        """Nothing more will be decoded."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._stack.close()

    @property
    def resident(self) -> bool:
        """All of them are kept in memory, or on the device."""
        return self._kept is not None

    def expect(self, places: Rows) -> None:
        """Begin to decode what will be asked for next."""
        if self._pool is not None and places.tobytes() not in self._ahead:
            self._ahead[places.tobytes()] = self._submit(places)

    def take(self, places: Rows) -> Tensor:
        """(B, 3, S, S) uint8 of some places of `rows`, on the device."""
        if self._kept is not None:
            found = self._kept[upload(torch.from_numpy(places), self._kept.device)]
            return found if found.device.type == self._device.type else upload(found, self._device)
        self.expect(places)
        futures = self._ahead.pop(places.tobytes())
        return upload(torch.from_numpy(np.concatenate([future.result() for future in futures])), self._device)

    def _submit(self, places: Rows) -> list[Future[npt.NDArray[np.uint8]]]:
        assert self._pool is not None
        parts = np.array_split(self.rows[places], min(len(places), self._workers))
        return [self._pool.submit(self._decode, part) for part in parts]

    def _decode(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """(B, 3, S, S) of rows that could be decoded at the start."""
        block = self._reader.rows(rows.tolist(), size=len(rows))
        for place, reason in block.reasons.items():
            raise BadImage(Status(block.status[place]), reason)
        return block.pixels
