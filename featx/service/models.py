"""What a service has loaded: networks, and the heads, fine-tuned networks and indexes that stand on them.

Heads and indexes whose features come from the same weights and preprocessing share one network.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featx.errors import UnknownLayer, UsageError, WeightsMismatch
from featx.extraction.engine import Engine
from featx.extraction.model import LOGITS, Model, load_model
from featx.extraction.provenance import versions
from featx.extraction.recipe import Recipe, describe_layer
from featx.heads.decision import DecisionRule, Scores
from featx.networks.layer_names import Layer
from featx.networks.pooling import Pooling
from featx.options.serving import ServeConfig
from featx.runtime.threads import usable_cores
from featx.service.batching import Batcher, Row
from featx.service.metrics import Metrics
from featx.service.neighbors import Index
from featx.store.open import open_features
from featx.store.schema import LayerSpec

NONE = Pooling("none")
Values = npt.NDArray[Any]


@dataclass
class Network:
    """A network at work.

    Attributes:
        name: by which requests choose it.
        fingerprint: SHA-256 of all that its values depend on but the images.
    """

    name: str
    engine: Engine
    batcher: Batcher
    fingerprint: str
    layers: dict[str, LayerSpec]

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


# --- loading


@dataclass
class _Want:
    """One recipe that somebody needs, and the weights it must be."""

    recipe: Recipe
    sha256: str | None = None
    who: str = ""


def load_models(config: ServeConfig, metrics: Metrics) -> Models:
    """Load what the options name.

    Raises:
        FeatxError: whatever `Extractor`, `Predictor` and `open_features` refuse.
    """
    first = Recipe.plan(
        backbone=config.backbone, layers=config.layers, weights=config.weights, precision=config.precision,
        device=config.device, preprocess=config.preprocess, resize=config.resize, crop=config.crop,
        squash=config.squash, exif=config.exif,
    )  # fmt: skip
    wants = [_Want(first)]
    heads: list[tuple[str, Model, _Want]] = []
    for name, path in _named(config.head) + _named(config.run):
        model = load_model(path)
        if (model.kind == "run") != (f"{name}={path}" in config.run):
            raise UsageError(f"{path} is a {'run: --run' if model.kind == 'run' else 'head: --head'} {name}={path}")
        if model.run is not None:
            model.run.refuse_unfinished()
        want = _Want(model.recipe(device=config.device, batch_size=None, decode="cpu"), who=f"the head {path}")
        want.sha256 = None if model.head is None else model.head.recipe["weights"]["sha256"]
        heads.append((name, model, want))
    indexes = [(name, open_features(path)) for name, path in _named(config.index)]
    of_index: dict[str, list[tuple[str, _Want]]] = {}
    for name, features in indexes:
        for layer in features.layers:
            stored = describe_layer(features.provenance, layer, features.layers[layer].pooling)
            recipe = Recipe.from_dict(
                stored, layer=layer, weights=None, device=config.device, batch_size=None, decode="cpu"
            )
            want = _Want(recipe, stored["weights"]["sha256"], f"the index {features.path}")
            of_index.setdefault(name, []).append((layer, want))
    all_wants = [*wants, *(want for *_, want in heads), *(w for ws in of_index.values() for _, w in ws)]
    groups: dict[str, list[_Want]] = {}
    for want in all_wants:
        groups.setdefault(_base(want.recipe), []).append(want)
    names = [*(one[0] for one in heads), *(one[0] for one in indexes)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name!r} is the name of several heads, runs or indexes; give each its own")
    models = Models()
    try:
        by_base = {key: _network(group, models, names, config, metrics) for key, group in groups.items()}
    except BaseException:
        models.close()
        raise
    for name, model, want in heads:
        network = by_base[_base(want.recipe)]
        models.classifiers[name] = Classifier(name, model, network, want.recipe.pooling)
    for name, features in indexes:
        layers = {layer: (by_base[_base(want.recipe)], want.recipe.pooling) for layer, want in of_index[name]}
        models.indexes[name] = Index(name, features, layers)
    return models


def _named(items: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(item.partition("=")[0], item.partition("=")[2]) for item in items]


def _base(recipe: Recipe) -> str:
    """What must agree for two recipes to share a network: everything but layers, pooling and blocks."""
    described = recipe.to_dict("")
    for name in ("layers", "pooling", "batch_size", "dtype"):
        del described[name]
    return json.dumps(described, sort_keys=True)


def _network(group: list[_Want], models: Models, taken: list[str], config: ServeConfig, metrics: Metrics) -> Network:
    layers: dict[str, Layer] = {}
    for want in group:
        for layer in want.recipe.layers:
            layers.setdefault(layer.name, layer)
    for want in group:
        for layer in want.recipe.layers:
            if layers[layer.name].node != layer.node:
                raise UsageError(
                    f"{want.who} calls {layer.node} {layer.name}; here that is {layers[layer.name].node}"
                )
    recipe = replace(group[0].recipe, layers=tuple(layers.values()), pooling=NONE, dtype="float32")
    engine = Engine(recipe)
    for want in group:
        if want.sha256 not in (None, engine.weights_sha256):
            engine.close()
            raise WeightsMismatch(
                f"{want.who} needs weights with sha256 {str(want.sha256)[:16]}...; {recipe.weights.name} has "
                f"{engine.weights_sha256[:16]}..."
            )
    described = {**recipe.to_dict(engine.weights_sha256), "versions": versions()}
    for name in ("layers", "batch_size"):
        del described[name]
    fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    batcher = Batcher(
        engine, workers=config.workers or usable_cores(), capacity=config.queue, timeout_s=config.image_timeout,
        metrics=metrics,
    )  # fmt: skip
    plain = base = Path(recipe.backbone.name).name
    number = 1
    while plain in models.networks or plain in taken:
        number += 1
        plain = f"{base}-{number}"
    network = Network(plain, engine, batcher, fingerprint, {spec.name: spec for spec in recipe.layer_specs()})
    models.networks[plain] = network
    return network
