"""Load what `featx serve` is told to; heads and indexes with the same weights and preprocessing share a network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from featx.errors import UsageError, WeightsMismatch
from featx.extraction.engine import Engine
from featx.extraction.model import Model, load_model
from featx.extraction.provenance import versions
from featx.extraction.recipe import Recipe, describe_layer
from featx.networks.layer_names import Layer
from featx.options.serving import DEFAULT_NETWORK, ServeConfig
from featx.runtime.threads import usable_cores
from featx.service.batching import Batcher
from featx.service.metrics import Metrics
from featx.service.models import NONE, Classifier, Models, Network
from featx.service.neighbors import Index
from featx.store.open import open_features


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
    wants = [_Want(_own_network(config))] if config.names_network else []
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
            if features.provenance.get("reduction"):
                raise UsageError(f"--index {name}={features.path} was made with --reduce; serve takes whole features")
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


def _own_network(config: ServeConfig) -> Recipe:
    return Recipe.plan(
        backbone=config.backbone or DEFAULT_NETWORK, layers=config.layers, weights=config.weights,
        precision=config.precision, device=config.device, preprocess=config.preprocess, resize=config.resize,
        crop=config.crop, squash=config.squash, exif=config.exif,
    )  # fmt: skip


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
    described = {**recipe.to_dict(engine.weights_sha256), "versions": versions(recipe.decode)}
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
    specs = {spec.name: spec for spec in recipe.layer_specs()}
    network = Network(plain, engine, batcher, fingerprint, specs, default_layer=group[0].recipe.layers[-1].name)
    models.networks[plain] = network
    return network
