"""The images of a features file that are nearest to one that is sent: an exact search over all rows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.analysis.nearest import Space
from featx.errors import UnknownLayer
from featx.images.bad_image import BadImage
from featx.images.decode import decode
from featx.images.sources.reopen import SourceImages
from featx.runtime.text import printable
from featx.store.reader import Features

if TYPE_CHECKING:
    from featx.networks.pooling import Pooling
    from featx.service.models import Network

_THUMBNAIL = 160  # pixels of the longer side


class Index:
    """A features file to search in; its rows stay on the disk, mapped.

    Attributes:
        layers: layer -> the network that computes it for new images, and its pooling.
    """

    def __init__(self, name: str, features: Features, layers: dict[str, tuple[Network, Pooling]]) -> None:
        self.name, self.features, self.layers = name, features, layers
        self._images = SourceImages(features.provenance["source"])
        self._spaces: dict[tuple[str, str], Space] = {}
        # All of it now: another file may get its name, and this one is searched until the service is told to reload.
        self._values = {layer: features[layer] for layer in layers}
        self._names, self._labels, self._classes = features.raw_paths, features.labels, features.classes

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
        if (layer, metric) not in self._spaces:
            self._spaces[layer, metric] = Space(self._values[layer], metric)
        return self._spaces[layer, metric].nearest(values, k)

    def path(self, row: int) -> str:
        """Of an image, as the features file has it."""
        return printable(self._names[row])

    def label(self, row: int) -> str | None:
        """The class of an image, where it has one."""
        label = int(self._labels[row])
        return None if label < 0 else self._classes[label]

    def thumbnail(self, row: int) -> bytes | None:
        """A small JPEG of an image; None if its file is not there any more."""
        try:
            image, _ = decode(self._images.content(self._names[row]), exif=True)
        except BadImage:
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
