"""A file that cannot become pixels, and the limits it may exceed."""

from __future__ import annotations

from featx.status import Status

MAX_FILE_BYTES = 1 << 30
MAX_PIXELS = 89_478_485  # Pillow's own threshold: a quarter of a gibibyte as RGB
IMAGE_TIMEOUT_S = 30.0  # by default, to decode one image
MAX_SAMPLE_BYTES = 1 << 30  # of one picture with more than 8 bits in a channel


class BadImage(Exception):
    """This image cannot become pixels: the kind of failure, and the reason in one line."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
