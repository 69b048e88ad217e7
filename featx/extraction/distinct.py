"""Images that a list names more than once: each is computed once, and written to all of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.images.block import Block
from featx.images.manifest import Manifest
from featx.status import Status
from featx.store.copying import runs_of
from featx.store.writer import FeatureWriter

Arrays = dict[str, npt.NDArray[Any]]


class DistinctImages:
    """Images of a manifest, each once, in the order of their first rows.

    Attributes:
        manifest: of the D distinct images.
        repeated: how many rows there are beyond D.
    """

    def __init__(self, manifest: Manifest, rows: Sequence[int] | None = None) -> None:
        """Args:

        rows: of the manifest, sorted, that are meant; by default all.
        """
        meant = np.arange(len(manifest)) if rows is None else np.array(rows, np.int64)
        number_of: dict[bytes, int] = {}
        numbers = [number_of.setdefault(manifest.paths[row], len(number_of)) for row in meant.tolist()]
        self._image_of_row = np.full(len(manifest), -1)
        self._image_of_row[meant] = numbers
        self._rows = meant[np.argsort(numbers, kind="stable")]  # those of image 0, of image 1, ...
        self._ends = np.searchsorted(self._image_of_row[self._rows], np.arange(len(number_of) + 1))
        self.manifest = manifest.part(self._rows[self._ends[:-1]].tolist())
        self.repeated = len(meant) - len(number_of)

    def pending_blocks(self, writer: FeatureWriter, batch_size: int) -> list[int]:
        """First images of the blocks in which some image has a row that is still to be done."""
        images = self._image_of_row[(writer.status == Status.PENDING) & (self._image_of_row >= 0)]
        return [int(block) * batch_size for block in np.unique(images // batch_size)]

    def rows_of(self, block: Block, writer: FeatureWriter) -> tuple[list[int], npt.NDArray[np.intp]]:
        """The rows that are still to be done of a block of distinct images, sorted, and the place of each in it."""
        first, last = block.first, block.first + len(block.status)
        rows = np.sort(self._rows[self._ends[first] : self._ends[last]])
        rows = rows[writer.status[rows] == Status.PENDING]
        return rows.tolist(), self._image_of_row[rows] - first

    def write(self, writer: FeatureWriter, block: Block, features: Arrays) -> tuple[list[int], list[str], int]:
        """Write a block of distinct images to all of their rows.

        Returns:
            the rows that failed, why each did, and how many rows were written.
        """
        (rows, places), reasons = self.rows_of(block, writer), block.reasons
        for part in runs_of(rows, max(1, len(rows))):
            taken = places[part]
            writer.write_block(
                rows[part.start],
                {name: values[taken] for name, values in features.items()},
                status=block.status[taken],
                sha256=block.sha256[taken],
                orientation=block.orientation[taken],
                decoder=block.decoder[taken],
                reasons={at: reasons[place] for at, place in enumerate(taken.tolist()) if place in reasons},
            )
        failed = [(row, reasons[place]) for row, place in zip(rows, places.tolist(), strict=True) if place in reasons]
        return [row for row, _ in failed], [reason for _, reason in failed], len(rows)
