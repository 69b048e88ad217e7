"""The images of a features file that are nearest to one that is sent: an exact search over all rows."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.errors import UnknownLayer
from featx.images.bad_image import BadImage
from featx.images.decode import decode
from featx.images.sources.read import Archive, read_file, read_member
from featx.runtime.text import printable
from featx.status import Status
from featx.store.reader import Features, flat_rows

if TYPE_CHECKING:
    from featx.networks.pooling import Pooling
    from featx.service.models import Network

METRICS = ("cosine", "euclidean")
_BYTES_AT_ONCE = 64 << 20
_THUMBNAIL = 160  # pixels of the longer side


class Index:
    """A features file to search in; its rows stay on the disk, mapped.

    Attributes:
        layers: layer -> the network that computes it for new images, and its pooling.
    """

    def __init__(self, name: str, features: Features, layers: dict[str, tuple[Network, Pooling]]) -> None:
        self.name, self.features, self.layers = name, features, layers
        self._done = features.count(Status.DONE)
        self._squares: dict[str, npt.NDArray[np.float64]] = {}

    def layer(self, name: str | None) -> str:
        """A layer of the file, the only one without a name; UnknownLayer if it has none of that name."""
        if name is None and len(self.layers) == 1:
            return next(iter(self.layers))
        if name not in self.layers:
            asked = "say which layer" if name is None else f"there is no layer {name!r}"
            raise UnknownLayer(f"{asked}; the index {self.name} holds {', '.join(self.layers)}")
        return name

    def nearest(
        self, layer: str, values: npt.NDArray[Any], k: int, metric: str
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """Rows of the k nearest images, nearest first, and their distances; of equal ones the first row.

        Args:
            values: (D,) of one image.
            metric: "cosine" (1 - the cosine of the angle) or "euclidean".
        """
        rows = flat_rows(self.features[layer])
        query = values.astype(np.float64).reshape(-1)
        squares = self._squares_of(layer)
        step = max(1, _BYTES_AT_ONCE // max(1, 8 * rows.shape[1]))
        found = np.empty(len(rows))
        for start in range(0, len(rows), step):
            block = np.asarray(rows[start : start + step], np.float64)
            if metric == "cosine":
                lengths = np.sqrt(squares[start : start + step] * (query @ query))
                cosines = block @ query / np.where(lengths == 0, 1.0, lengths)
                found[start : start + step] = np.maximum(0.0, 1.0 - cosines)
            else:
                found[start : start + step] = np.sqrt(np.square(block - query).sum(axis=1))
        best = np.argsort(found, kind="stable")[: min(k, self._done)]  # failed images' are NaN, which come last
        return best, found[best]

    def _squares_of(self, layer: str) -> npt.NDArray[np.float64]:
        if layer not in self._squares:
            rows = flat_rows(self.features[layer])
            self._squares[layer] = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
        return self._squares[layer]

    def path(self, row: int) -> str:
        """Of an image, as the features file has it."""
        return printable(self.features.raw_paths[row])

    def label(self, row: int) -> str | None:
        """The class of an image, where it has one."""
        label = int(self.features.labels[row])
        return None if label < 0 else self.features.classes[label]

    def thumbnail(self, row: int) -> bytes | None:
        """A small JPEG of an image; None if its file is not there any more."""
        source = self.features.provenance["source"]
        root = Path(source["path"])
        path = self.features.raw_paths[row]
        try:
            if source["kind"] == "zip":
                with Archive(root) as archive:
                    content = read_member(archive, path)
            else:
                folder = root if source["kind"] == "folder" else root.parent
                content = read_file(folder / os.fsdecode(path))
            image, _ = decode(content, exif=True)
        except (BadImage, OSError):
            return None
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85)
        return out.getvalue()

    def describe(self) -> dict[str, Any]:
        """For people and clients, as plain values."""
        return {
            "id": self.name,
            "kind": "index",
            "images": len(self.features),
            "layers": {
                name: {"network": network.name, "pooling": pooling.spec}
                for name, (network, pooling) in self.layers.items()
            },
            "fingerprint": self.features.fingerprint,
        }
