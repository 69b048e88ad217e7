"""A learning rate for every layer, as a specification that can be read, printed and stored.

    conv1-conv3=0, conv4-conv5=1e-4, fc6-fc7=1e-3, fc8=1e-2, *.bias=x2/wd0

Entries are `WHERE=RATE[@EPOCH][/wdDECAY]`. WHERE is a layer of the literature, a range of them, a module's or
parameter's own name, or a glob over any of these (`*.bias`, `conv5_*`, `*`). RATE 0 freezes; `x2` doubles what
earlier entries gave. `@EPOCH` keeps the layer frozen before that epoch. DECAY replaces the run's weight decay. Later
entries win.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from featx.errors import UnknownLayer, UsageError
from featx.networks.build import auxiliary_layers, final_layer
from featx.runtime.text import nearest_names
from featx.training.layer_groups import LayerGroup, has_parameters, layer_groups

NEW, PRETRAINED = 0.01, 0.001  # the classic advice: the new layer fast, what is pretrained gently
FEW_IMAGES = 2_000  # below that, only the head is trained unless the user says otherwise
POLICIES = "head, fc, all, decay:Q, gradual:EPOCHS or auto"
_NUMBER = r"[0-9.]+(?:[eE][-+]?\d+)?"
_VALUE = re.compile(rf"(?P<rate>x?{_NUMBER})?(?:@(?P<epoch>\d+))?(?:/wd(?P<decay>{_NUMBER}))?")


@dataclass(frozen=True)
class Rate:
    """How one parameter is trained.

    Attributes:
        layer: the layer group it belongs to.
        rate: learning rate; 0 is frozen.
        epoch: frozen before this one.
        decay: weight decay; None for the run's.
    """

    parameter: str
    layer: str
    values: int
    rate: float
    epoch: int = 0
    decay: float | None = None


def expand_policy(policy: str, network: nn.Module, images: int) -> str:
    """A policy as the specification it stands for; a specification as it is.

    head: the final layer only. fc: the fully connected layers. all: everything. decay:Q: every layer Q times as fast
    as the one behind it. gradual:EPOCHS: as `all`, but each layer waits so many epochs longer than the one behind it.
    auto: `head` for fewer than 2,000 images, else `all`.

    Raises:
        UsageError: a policy the network has no layers for, or none at all.
    """
    names = [group.name for group in layer_groups(network)]
    heads = auxiliary_layers(network)
    names = [name for name in names if name.partition(".")[0] not in heads]
    head = final_layer(network) if names[-1] not in ("fc8",) else "fc8"
    word, _, argument = policy.strip().partition(":")
    if "=" in policy:
        return policy
    if word == "auto":
        word = "head" if images < FEW_IMAGES else "all"
    rest = [name for name in names if name != head]
    auxiliary = [f"{name}.*={PRETRAINED:g}, {layer}={NEW:g}" for name, layer in heads.items()]
    if word == "head":
        return f"*=0, {head}={NEW:g}"
    if word == "all":
        return ", ".join([f"*={PRETRAINED:g}", f"{head}={NEW:g}", *(f"{layer}={NEW:g}" for layer in heads.values())])
    if word == "fc":
        if "fc6" not in names:
            raise UsageError(f"--lr fc is for AlexNet and VGG; the layers here are {', '.join(names)}")
        return f"*=0, fc6-fc7={PRETRAINED:g}, {head}={NEW:g}"
    try:
        if word == "decay" and 0 < float(argument) <= 1:
            steps = range(len(rest))
            below = [f"{n}={PRETRAINED * float(argument) ** k:.3g}" for k, n in zip(steps, rest[::-1], strict=True)]
            return ", ".join([*below[::-1], f"{head}={NEW:g}", *auxiliary])
        if word == "gradual" and int(argument) > 0:
            waits = [f"{name}={PRETRAINED:g}@{k * int(argument)}" for k, name in enumerate(rest[::-1], 1)]
            return ", ".join([*waits[::-1], f"{head}={NEW:g}", *auxiliary])
    except ValueError:
        pass
    raise UsageError(
        f"--lr is {policy!r}; it can be {POLICIES}, or LAYERS=RATE,... such as conv1-conv5=0,fc6-fc8=1e-3"
    )


def assign_rates(spec: str, network: nn.Module) -> list[Rate]:
    """The rate of every parameter, in the network's order.

    Raises:
        UnknownLayer: an entry that matches nothing.
        UsageError: an entry that cannot be read; parameters that no entry names.
    """
    groups = layer_groups(network)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    layer_of = {name: group.name for group in groups for name in group.parameters}
    found: dict[str, Rate] = {}
    for entry in filter(None, (part.strip() for part in spec.split(","))):
        where, equals, value = (part.strip() for part in entry.partition("="))
        match = _VALUE.fullmatch(value)
        if not equals or not where or not match or not value:
            raise UsageError(f"--lr: {entry!r} is not LAYERS=RATE; write conv1-conv5=0 or fc6=1e-3 or *.bias=x2/wd0")
        for name in _matching(where, groups, layer_of):
            found[name] = _changed(found.get(name), Rate(name, layer_of[name], sizes[name], -1.0), match, entry)
    for rate in found.values():
        if not (math.isfinite(rate.rate) and math.isfinite(rate.decay or 0.0)):
            raise UsageError(f"--lr gives {rate.layer} a rate or decay that is infinite")
    missing = [name for name in sizes if name not in found or found[name].rate < 0]
    if missing:
        layers = ", ".join(dict.fromkeys(layer_of[name] for name in missing))
        raise UsageError(
            f"--lr gives no rate to {layers} ({missing[0]} and others); put *=0 first to freeze the rest"
        )
    return [found[name] for name in sizes]


def _changed(before: Rate | None, fresh: Rate, match: re.Match[str], entry: str) -> Rate:
    rate, epoch, decay = match["rate"], match["epoch"], match["decay"]
    now = before or fresh
    try:
        if rate and rate.startswith("x"):
            if before is None or before.rate < 0:
                raise UsageError(f"--lr: {entry!r} multiplies a rate that no earlier entry gives")
            now = replace(now, rate=before.rate * float(rate[1:]))
        elif rate:
            now = replace(fresh, rate=float(rate), decay=now.decay)
        if epoch is not None:
            now = replace(now, epoch=int(epoch))
        return now if decay is None else replace(now, decay=float(decay))
    except ValueError:
        raise UsageError(f"--lr: {entry!r} is not LAYERS=RATE") from None


def _matching(where: str, groups: Sequence[LayerGroup], layer_of: dict[str, str]) -> list[str]:
    """The parameters that a name, range or glob means."""
    names = [group.name for group in groups]
    first, dash, last = where.partition("-")
    if where in names:
        return list(groups[names.index(where)].parameters)
    if dash and first.strip() in names and last.strip() in names:
        start, stop = names.index(first.strip()), names.index(last.strip())
        if start > stop:
            raise UnknownLayer(f"--lr: {where} runs backwards; write {last.strip()}-{first.strip()}")
        return [name for group in groups[start : stop + 1] for name in group.parameters]
    inside = [name for name in layer_of if name == where or name.startswith(f"{where}.")]
    if inside:
        return inside
    matches = [
        name
        for name, layer in layer_of.items()
        if any(fnmatchcase(alias, where) for alias in (name, layer, f"{layer}.{name.rpartition('.')[2]}"))
    ]
    if not matches:
        nearest = nearest_names(where, [*names, *layer_of])
        raise UnknownLayer(f"--lr: no layer {where!r}. Nearest: {nearest}. The layers are {', '.join(names)}")
    return matches


def apply_modes(network: nn.Module, rates: Sequence[Rate], epoch: int) -> None:
    """Make what is trained in this epoch trainable, and what is frozen frozen, in place.

    Frozen means no gradient, and BatchNorm and dropout in eval mode. A module is in training mode if one of its own
    parameters is trained, or, without any, if its layer is. To be called after anything that calls `train()`.
    """
    parameters = dict(network.named_parameters())
    trained = {rate.parameter for rate in rates if is_trained(rate, epoch)}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
        if name not in trained:
            parameter.grad = None
    layers = {rate.layer for rate in rates if rate.parameter in trained}
    groups = layer_groups(network)
    network.eval()
    for name, module in network.named_modules():
        if not name:  # the network itself: GoogLeNet and Inception return what their auxiliary heads say as well
            module.training = bool(trained_auxiliary_heads(network, rates, epoch))
            continue
        own = [f"{name}.{inner}" for inner, _ in module.named_parameters(recurse=False)]
        if own:
            module.training = any(parameter in trained for parameter in own)
        elif has_parameters(module):
            module.training = any(parameter.startswith(f"{name}.") for parameter in trained)
        else:
            module.training = any(group.name in layers and _is_in(name, group) for group in groups)


def trained_auxiliary_heads(network: nn.Module, rates: Sequence[Rate], epoch: int) -> list[str]:
    """The auxiliary heads whose last layer is trained in this epoch: only they say anything about the classes."""
    trained = {rate.parameter for rate in rates if is_trained(rate, epoch)}
    return [name for name, layer in auxiliary_layers(network).items() if f"{layer}.weight" in trained]


def is_trained(rate: Rate, epoch: int) -> bool:
    return rate.rate > 0 and epoch >= rate.epoch


def _is_in(module: str, group: LayerGroup) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in group.modules)


def rate_table(rates: Sequence[Rate], decay: float) -> list[list[str]]:
    """Rows of layer, parameters, rate, weight decay, and since when; one per layer and kind of treatment."""
    rows: dict[tuple[str, float, int, float], int] = {}
    for rate in rates:
        own = decay if rate.decay is None else rate.decay
        key = (rate.layer, rate.rate, rate.epoch, own) if rate.rate else (rate.layer, 0.0, 0, 0.0)
        rows[key] = rows.get(key, 0) + rate.values
    return [
        [
            layer,
            f"{values:,}",
            "frozen" if not rate else f"{rate:g}",
            "" if not rate else f"{own:g}",
            "" if not rate or not epoch else f"from epoch {epoch}",
        ]
        for (layer, rate, epoch, own), values in rows.items()
    ]


def scaled(specification: str, factor: float) -> str:
    """A specification with all its rates multiplied; what doubles earlier ones stays.

    >>> scaled("conv1=0, fc7=1e-3@2, fc8=0.01/wd0, *.bias=x2", 10)
    'conv1=0, fc7=0.01@2, fc8=0.1/wd0, *.bias=x2'
    """
    found = []
    for entry in specification.split(","):
        where, _, value = entry.strip().rpartition("=")
        parsed = _VALUE.fullmatch(value)
        if parsed is None or parsed["rate"] is None or parsed["rate"].startswith("x"):
            found.append(entry.strip())
            continue
        found.append(f"{where}={float(parsed['rate']) * factor:.3g}{value[len(parsed['rate']) :]}")
    return ", ".join(found)
