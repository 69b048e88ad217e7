"""Blocks of a manifest's images become blocks of pixels; worker threads go through the blocks."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featx.images.decode import BadImage, Status, decode, read_file, read_member
from featx.images.preprocess import Preprocess, TooElongated
from featx.images.scan import Manifest


@dataclass(frozen=True)
class Block:
    """Rows first .. first + B - 1 of a manifest, decoded.

    Attributes:
        pixels: (batch_size, 3, S, S) uint8, channels last in memory; failed images and rows past the end are zero.
        status: (B,) uint8, see `Status`: DONE or a kind of failure.
        sha256: (B, 32) uint8 of the files' bytes; zero where there were none.
        reasons: row in the block -> why it failed.
        orientation: (B,) uint8, EXIF orientation, 1 = upright.
        read_s, decode_s: seconds spent.
    """

    first: int
    pixels: npt.NDArray[np.uint8]
    status: npt.NDArray[np.uint8]
    sha256: npt.NDArray[np.uint8]
    reasons: dict[int, str]
    orientation: npt.NDArray[np.uint8]
    read_s: float
    decode_s: float


class BlockReader:
    """Reads and decodes blocks of a manifest; may be used by several threads at once."""

    def __init__(self, manifest: Manifest, preprocess: Preprocess, batch_size: int, *, exif: bool = False) -> None:
        self.manifest = manifest
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.exif = exif
        self._local = threading.local()

    def read_bytes(self, row: int) -> bytes:
        """The bytes of one image; BadImage if there are none to be had."""
        if self.manifest.kind != "zip":
            return read_file(self.manifest.full_path(row))
        archive = getattr(self._local, "archive", None)
        if archive is None:  # one handle per thread: they share no file position
            archive = self._local.archive = zipfile.ZipFile(self.manifest.root)
        return read_member(archive, os.fsdecode(self.manifest.paths[row]))

    def pixels(self, row: int) -> npt.NDArray[np.uint8]:
        """(3, S, S) of one image.

        Raises:
            BadImage: there is none to be had.
        """
        image, _ = decode(self.read_bytes(row), exif=self.exif)
        try:
            return self.preprocess.pixels(image)
        except TooElongated as bad:
            raise BadImage(Status.TOO_LARGE, str(bad)) from bad

    def block(self, first: int) -> Block:
        """The block that begins at row `first`, in the fixed size the network always sees."""
        rows = range(first, min(first + self.batch_size, len(self.manifest)))
        side = self.preprocess.crop
        pixels = np.zeros((self.batch_size, side, side, 3), np.uint8).transpose(0, 3, 1, 2)
        status = np.full(len(rows), Status.DONE, np.uint8)
        sha256 = np.zeros((len(rows), 32), np.uint8)
        reasons: dict[int, str] = {}
        orientation = np.ones(len(rows), np.uint8)
        read_s, decode_s = 0.0, 0.0
        for place, row in enumerate(rows):
            started = time.perf_counter()
            try:
                content = self.read_bytes(row)
                sha256[place] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
                read_s += (mark := time.perf_counter()) - started
                started = mark
                image, orientation[place] = decode(content, exif=self.exif)
                pixels[place] = self.preprocess.pixels(image)
            except BadImage as bad:
                status[place], reasons[place] = bad.status, str(bad)
            except TooElongated as bad:
                status[place], reasons[place] = Status.TOO_LARGE, str(bad)
            decode_s += time.perf_counter() - started
        return Block(first, pixels, status, sha256, reasons, orientation, read_s, decode_s)


def run_workers(blocks: Iterable[int], workers: int, work: Callable[[int], None], stop: threading.Event) -> None:
    """Give every block to `work`, several at a time on threads; the first error stops them all and is raised.

    When `stop` is set, blocks that were begun are finished and no others are begun.
    """
    waiting, turn = iter(blocks), threading.Lock()
    errors: list[BaseException] = []

    def go() -> None:
        while not (stop.is_set() or errors):
            try:
                with turn:
                    first = next(waiting, None)
                if first is None:
                    return
                work(first)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=go, name=f"featx-{n}", daemon=True) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # short waits: signal handlers run in this thread only
            thread.join(0.1)
    if errors:
        raise errors[0]
