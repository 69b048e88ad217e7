"""Blocks of a manifest's images become blocks of pixels; worker threads go through the blocks."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from featx.images.bad_image import IMAGE_TIMEOUT_S, BadImage
from featx.images.block import Block, Encoded, empty_block
from featx.images.decode import decode, open_image
from featx.images.manifest import Manifest
from featx.images.metadata import orientation_of
from featx.images.preprocess import MAX_RESIZED_PIXELS, Preprocess, TooElongated, resized_size
from featx.images.processes.turns import Need, Turns, no_turns
from featx.images.sources.containers import Container, open_container
from featx.status import Decoder, Status

_END_OF_IMAGE = b"\xff\xd9"
_TAIL = 64  # bytes at the end among which the end marker stands; some cameras append a few zeros


class BlockDecoder:
    """Puts images into blocks, decoded and preprocessed; may be used by several threads at once."""

    def __init__(
        self,
        preprocess: Preprocess,
        batch_size: int,
        *,
        exif: bool = False,
        fast: bool = False,
        timeout_s: float = IMAGE_TIMEOUT_S,
        turns: Turns | None = None,
    ) -> None:
        """Args:

        fast: JPEGs by libjpeg-turbo and PyTorch, which is faster and a level or two off.
        timeout_s: to decode one image.
        turns: of large images; by default one at a time.
        """
        self.preprocess, self.batch_size = preprocess, batch_size
        self.turns = turns or Turns(1)
        self.exif, self.fast, self.timeout_s = exif, fast, timeout_s

    def decode_into(self, block: Block, place: int, content: bytes, need: Need = no_turns) -> None:
        """Decode a file, or keep it for the device if the block keeps files."""
        if not self._take_quick_way(block, place, content):
            self._decode(block, place, content, need)

    def _take_quick_way(self, block: Block, place: int, content: bytes) -> bool:
        """Keep a file for the device, or decode it the fast way, if that is asked for and can be done."""
        if block.encoded is None and not self.fast:
            return False
        try:
            image = open_image(content)
        except BadImage:
            return False  # Pillow will say so once more, with its reason
        orientation = orientation_of(image)
        if (self.exif and orientation != 1) or not suits_the_device(image, content, self.preprocess):
            return False
        if block.encoded is None:
            from featx.images.device_decode import NotDecodable, fast_pixels  # torch, which not everybody needs

            try:
                block.pixels[place] = fast_pixels(content, self.preprocess)
            except NotDecodable:
                return False
            block.orientation[place], block.decoder[place] = orientation, Decoder.FAST
            return True
        block.orientation[place] = orientation
        block.encoded[place] = Encoded(content, image.size[0] * image.size[1])
        return True

    def decode_encoded(self, block: Block) -> None:
        """Decode what a block has kept by Pillow after all."""
        for place, file in (block.encoded or {}).items():
            with self.turns.image() as need:
                self._decode(block, place, bytes(file.content), need)

    def _decode(self, block: Block, place: int, content: bytes, need: Need) -> None:
        try:
            image, block.orientation[place] = decode(content, exif=self.exif, timeout_s=self.timeout_s, need=need)
            block.pixels[place] = self.preprocess.pixels(image)
        except BadImage as bad:
            block.status[place], block.reasons[place] = bad.status, str(bad)
        except TooElongated as bad:
            block.status[place], block.reasons[place] = Status.TOO_LARGE, str(bad)


class BlockReader(BlockDecoder):
    """Reads and decodes blocks of a manifest."""

    def __init__(
        self,
        manifest: Manifest,
        preprocess: Preprocess,
        batch_size: int,
        *,
        exif: bool = False,
        fast: bool = False,
        timeout_s: float = IMAGE_TIMEOUT_S,
        turns: Turns | None = None,
    ) -> None:
        super().__init__(preprocess, batch_size, exif=exif, fast=fast, timeout_s=timeout_s, turns=turns)
        self.manifest = manifest
        self.tell: Callable[[], object] = lambda: None  # called after every image
        self._local = threading.local()

    def read_bytes(self, row: int, need: Need = no_turns) -> bytes:
        """The bytes of one image; BadImage if there are none to be had."""
        container: Container | None = getattr(self._local, "container", None)
        if container is None:  # one per thread: they share no file position
            container = self._local.container = open_container(self.manifest.kind, self.manifest.root)
        return container.read(self.manifest.paths[row], need)

    def block(self, first: int, *, keep_encoded: bool = False) -> Block:
        """The block that begins at row `first`, in the fixed size the network always sees.

        Args:
            keep_encoded: leave the files that the device can decode as they are.
        """
        rows = range(first, min(first + self.batch_size, len(self.manifest)))
        block = self.rows(rows, size=self.batch_size, keep_encoded=keep_encoded)
        block.first = first
        return block

    def rows(self, rows: Sequence[int], *, size: int, keep_encoded: bool = False) -> Block:
        """Any rows as a block, in their order, with pixels for `size` images."""
        block = empty_block(len(rows), size, self.preprocess.shape, keep_encoded=keep_encoded)
        for place, row in enumerate(rows):
            with self.turns.image() as need:
                self._row(block, place, row, need)
            self.tell()
        return block

    def _row(self, block: Block, place: int, row: int, need: Need) -> None:
        started = time.perf_counter()
        try:
            content = self.read_bytes(row, need)
            block.sha256[place] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        except BadImage as bad:
            block.status[place], block.reasons[place] = bad.status, str(bad)
            return
        finally:
            block.read_s += (mark := time.perf_counter()) - started
        self.decode_into(block, place, content, need)
        block.decode_s += time.perf_counter() - mark


def suits_the_device(image: Image.Image, content: bytes, preprocess: Preprocess) -> bool:
    """Whether the device may decode a file: a whole baseline JPEG, grey or YCbCr, of an ordinary shape.

    Everything else is Pillow's: progressive files, which no hardware engine takes; CMYK and RGB kept as such; files
    that are cut off, which nvJPEG decodes in part without an error.

    Args:
        image: the file as Pillow has opened it, header read, pixels not yet.
    """
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or image.info.get("progressive"):
        return False
    if image.mode == "RGB" and image.info.get("adobe_transform", 1) != 1:
        return False
    if not preprocess.squash:
        width, height = resized_size(image.size, preprocess.resize)
        if width * height > MAX_RESIZED_PIXELS:
            return False
    return _END_OF_IMAGE in content[-_TAIL:]
