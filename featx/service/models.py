"""What a service has loaded: networks, and the heads, fine-tuned networks and indexes that stand on them.

Heads and indexes whose features come from the same weights and preprocessing share one network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featx.errors import UnknownLayer, UsageError
from featx.extraction.engine import Engine
from featx.extraction.model import LOGITS, Model
from featx.heads.decision import DecisionRule, Scores
from featx.networks.pooling import Pooling
from featx.service.batching import Batcher, Row
from featx.service.metrics import Metrics
from featx.service.neighbors import Index
from featx.store.schema import LayerSpec

NONE = Pooling("none")
Values = npt.NDArray[Any]


@dataclass
class Network:
    """A network at work.

    Attributes:
        name: by which requests choose it.
        fingerprint: SHA-256 of all that its values depend on but the images.
        layers: what can be asked for: those of -l, then what heads and indexes need.
        default_layer: the last of -l.
    """

    name: str
    engine: Engine
    batcher: Batcher
    fingerprint: str
    layers: dict[str, LayerSpec]
    default_layer: str

    def show(self, metrics: Metrics) -> None:
        """Show the length of its queue."""
        metrics.watch(self.name, lambda: self.batcher.waiting)

    def layer(self, name: str) -> str:
        """A layer that is offered.

        Raises:
            UnknownLayer: it is not.
        """
        if name not in self.layers:
            raise UnknownLayer(f"{self.name} offers {', '.join(self.layers)}, not {name!r}")
        return name

    def pooled(self, row: Row, layer: str, pooling: Pooling) -> Values:
        """One layer of one image, pooled: the bits of `featx extract --pool`."""
        values = row.features[layer]
        if pooling.kind == "none" or values.ndim == 1:
            return values
        with torch.inference_mode():
            found: Values = self.engine.pool(layer, values[None], pooling)[0]
        return found

    def shape(self, layer: str, pooling: Pooling) -> tuple[int, ...]:
        """Of one image's values.

        Raises:
            UsageError: the pooling does not suit the layer.
        """
        spec = self.layers[layer]
        geometry = self.engine.recipe.backbone.geometry_of(
            next(one for one in self.engine.recipe.layers if one.name == layer)
        )
        pooling.refuse_unsuited(layer, spec.shape, geometry.layout)
        return pooling.shape(spec.shape, geometry.layout)

    def describe(self) -> dict[str, Any]:
        """For people and clients, as plain values."""
        recipe = self.engine.recipe
        return {
            "id": self.name,
            "kind": "network",
            "backbone": Path(recipe.backbone.name).name,
            "weights": {"name": Path(recipe.weights.name).name, "sha256": self.engine.weights_sha256},
            "preprocessing": recipe.preprocess.values() | {"exif": recipe.exif},
            "precision": recipe.precision,
            "layers": {name: {"shape": list(spec.shape)} for name, spec in self.layers.items()},
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class Classifier:
    """A head on a network's layer, or a fine-tuned network."""

    name: str
    model: Model
    network: Network
    pooling: Pooling

    @property
    def rule(self) -> DecisionRule:
        return self.model.rule

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that its scores depend on but the images."""
        parts = f"{self.network.fingerprint} {self.model.digest} {self.pooling.spec}"
        return hashlib.sha256(parts.encode()).hexdigest()

    def scores(self, row: Row) -> Scores:
        """(1, K) of one image, computed alone: they cannot depend on its neighbours."""
        if self.model.head is None:
            return np.asarray(row.features[LOGITS][None], np.float64)
        layer = self.model.head.layer
        return self.model.head.scores(self.network.pooled(row, layer, self.pooling).reshape(1, -1))

    def describe(self) -> dict[str, Any]:
        """For people and clients, as plain values."""
        head = self.model.head
        return {
            "id": self.name,
            "kind": self.model.kind,
            "network": self.network.name,
            "layer": LOGITS if head is None else head.layer,
            "pooling": self.pooling.spec,
            "classes": self.model.classes,
            "multilabel": self.rule.multilabel,
            "sha256": self.model.digest,
            "fingerprint": self.fingerprint,
        }


@dataclass
class Models:
    """All that one service has loaded."""

    networks: dict[str, Network] = field(default_factory=dict)
    classifiers: dict[str, Classifier] = field(default_factory=dict)
    indexes: dict[str, Index] = field(default_factory=dict)

    @property
    def default(self) -> Network:
        return next(iter(self.networks.values()))

    def network(self, name: str | None) -> Network:
        """By name, the first without one; UsageError if there is none of that name."""
        return self.default if name is None else self.networks[_only(self.networks, name, "network")]

    def classifier(self, name: str | None) -> Classifier:
        """By name, the only one without one; UsageError if there is none of that name."""
        return self.classifiers[_only(self.classifiers, name, "head")]

    def index(self, name: str | None) -> Index:
        """By name, the only one without one; UsageError if there is none of that name."""
        return self.indexes[_only(self.indexes, name, "index")]

    def describe(self) -> list[dict[str, Any]]:
        """Everything, as plain values."""
        parts = (self.networks, self.classifiers, self.indexes)
        return [one.describe() for part in parts for one in part.values()]

    def close(self) -> None:
        """Finish what is queued and free the networks."""
        for network in self.networks.values():
            network.batcher.close()


def _only(there: dict[str, Any], name: str | None, kind: str) -> str:
    """The name, if it is there; without one, the only one there is."""
    if name is not None and name not in there:
        known = f"; there is {', '.join(there)}" if there else ""
        raise UsageError(f"this service has no {kind} {name!r}{known}")
    if name is None and not there:
        raise UsageError(f"this service has no {kind}; it is started with --{kind} NAME=PATH")
    if name is None and len(there) > 1:
        raise UsageError(f"this service has the {kind}s {', '.join(there)}: choose one with {kind}=NAME")
    return next(iter(there)) if name is None else name
