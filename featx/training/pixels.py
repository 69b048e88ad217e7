"""Training images: decoded once and kept while they fit into memory, else decoded anew for every step."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.device import free_memory, upload
from featx.images.decode import BadImage, quiet_pillow
from featx.images.feed import BlockReader, run_workers
from featx.images.preprocess import Preprocess
from featx.images.scan import Manifest
from featx.progress import Reporter

Rows = npt.NDArray[np.intp]


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
        workers: int | None,
        reporter: Reporter,
    ) -> None:
        """Decode all rows once, to know which can be, and keep them if they fit into `memory_bytes`.

        On a GPU they are kept there if a third of what is free holds them: the network needs the rest.
        """
        self._device = device
        self._reader = BlockReader(manifest, preprocess, 1, exif=exif)
        self._workers = workers or len(os.sched_getaffinity(0))
        self._side = preprocess.crop
        self.bad: dict[int, str] = {}
        kept = None
        if len(rows) * 3 * self._side**2 <= memory_bytes:
            kept = np.zeros((len(rows), 3, self._side, self._side), np.uint8)
        good = np.ones(len(rows), bool)
        reporter.begin("decode", len(rows))

        def load(place: int) -> None:
            try:
                pixels = self._reader.pixels(int(rows[place]))
                if kept is not None:
                    kept[place] = pixels
            except BadImage as bad:
                self.bad[int(rows[place])] = str(bad)
                good[place] = False
            reporter.advance(1)

        with quiet_pillow():
            run_workers(range(len(rows)), self._workers, load, threading.Event())
        reporter.end()
        self.rows = rows[good]
        self._kept: Tensor | None = None
        if kept is not None:
            self._kept = torch.from_numpy(kept if good.all() else kept[good])
            if device.type == "cuda" and self._kept.nbytes <= free_memory(device) // 3:
                self._kept = self._kept.to(device)
        self._pool = ThreadPoolExecutor(self._workers) if kept is None else None
        self._ahead: tuple[bytes, list[Future[npt.NDArray[np.uint8]]]] | None = None

    @property
    def resident(self) -> bool:
        """All of them are kept in memory, or on the device."""
        return self._kept is not None

    def expect(self, places: Rows) -> None:
        """Begin to decode what will be asked for next."""
        if self._pool is not None:
            self._ahead = places.tobytes(), self._submit(places)

    def take(self, places: Rows) -> Tensor:
        """(B, 3, S, S) uint8 of some places of `rows`, on the device."""
        if self._kept is not None:
            found = self._kept[upload(torch.from_numpy(places), self._kept.device)]
            return found if found.device.type == self._device.type else upload(found, self._device)
        if self._ahead is None or self._ahead[0] != places.tobytes():
            self.expect(places)
        assert self._ahead is not None
        _, futures = self._ahead
        self._ahead = None
        return upload(torch.from_numpy(np.stack([future.result() for future in futures])), self._device)

    def _submit(self, places: Rows) -> list[Future[npt.NDArray[np.uint8]]]:
        assert self._pool is not None
        return [self._pool.submit(self._reader.pixels, int(self.rows[place])) for place in places]
