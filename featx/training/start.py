"""Where a training starts: the network, its weights, and how its images are prepared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from featx.errors import UsageError
from featx.images.preprocess import Preprocess
from featx.networks.architectures.architecture import WeightsSource
from featx.networks.backbone import Backbone
from featx.networks.build import (
    auxiliary_layers,
    construct,
    fill_auxiliary_heads,
    final_layer,
    replace_final_layer,
)
from featx.networks.external.code import code_of, trust_code
from featx.networks.load import load_network
from featx.networks.registry import default_preprocessing
from featx.networks.run_folder import is_run, read_run
from featx.networks.weights import assumed_preprocessing, preprocessing_for, published_name, weights_of
from featx.options.training import FinetuneConfig
from featx.runtime.progress import Reporter
from featx.runtime.text import printable


@dataclass(frozen=True)
class Start:
    """A network before its first step.

    Attributes:
        network: with a final layer for the new classes.
        weights: spec, sha256, torchvision's name and code of what it starts from, as a run stores them.
    """

    network: nn.Module
    preprocess: Preprocess
    weights: dict[str, Any]


def starting_network(config: FinetuneConfig, names: list[str], reporter: Reporter) -> Start:
    """The network of a training's options, with its weights and a final layer for K classes of these names.

    Raises:
        UsageError, WeightsMismatch, WeightsUnavailable: as `featx extract`.
    """
    classes = len(names)
    if config.continue_epochs is not None:
        _refuse_other_classes(config.backbone, names)
    trust_code(config.backbone)
    source = None if config.from_scratch else weights_of(config.backbone, config.weights)
    named = None if config.preprocess is None else published_name(config.backbone, config.preprocess)
    if source is not None and source.published is None:
        source = replace(source, published=named)
    assumed = None if source is None else assumed_preprocessing(config.backbone, source)
    if assumed is not None:
        reporter.note(assumed)
    code = code_of(config.backbone)
    weights: dict[str, Any] = {"spec": "random", "sha256": None, **({} if code is None else {"code": code})}
    if source is None:
        network = construct(config.backbone, config.seed, classes=classes)
    else:
        network, sha256 = _loaded(config, source, classes, reporter)
        published = source.published or (read_run(config.backbone).published if is_run(config.backbone) else None)
        weights |= {"spec": config.weights, "sha256": sha256, "published": published}
    if config.dropout is not None:
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    return Start(network, _preprocess(config, source, named), weights)


def _preprocess(config: FinetuneConfig, source: WeightsSource | None, named: str | None) -> Preprocess:
    backbone = Backbone(config.backbone, config.crop, source.published if source else None)
    own = preprocessing_for(backbone.preprocessing, source)
    values = own if named is None else default_preprocessing(config.backbone, named)
    return Preprocess.from_values(dict(values)).overridden(
        resize=config.resize, crop=config.crop, squash=config.squash, fit=config.fit, pad_color=config.pad_color,
        interpolation=config.interpolation, mean=config.mean, std=config.std, grey=config.grey,
    )  # fmt: skip


def _loaded(config: FinetuneConfig, source: WeightsSource, classes: int, reporter: Reporter) -> tuple[nn.Module, str]:
    """The network with a new final layer, and the SHA-256 of the weights it had."""
    loaded = load_network(config.backbone, source, reporter.download)
    network = loaded.network
    if config.continue_epochs is not None:
        loaded.gaps.refuse(str(source.file), list(network.state_dict()))
        return network, loaded.sha256
    replaced = tuple(f"{name}." for name in (final_layer(network), *auxiliary_layers(network)))
    loaded.gaps.refuse(str(source.file), [n for n in network.state_dict() if not n.startswith(replaced)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        replace_final_layer(network, classes)
    fill_auxiliary_heads(network, loaded.gaps.missing, config.backbone, config.seed)
    return network, loaded.sha256


def _refuse_other_classes(backbone: str, names: list[str]) -> None:
    """Raise UsageError unless a run has learnt these classes."""
    known = read_run(backbone).classes
    if known == names:
        return
    other = [name for name in (*names, *known) if (name in names) != (name in known)]
    shown = f": {printable(other[0])!r}" if other else " in another order"
    raise UsageError(
        f"--continue goes on with the {len(known)} classes of {backbone}, and the images to train on have "
        f"others{shown}. Fine-tune it to them without --continue"
    )
