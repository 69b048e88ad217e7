"""A name becomes a network without trained weights: torchvision's, one of featx's own, or that of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featx.errors import UsageError
from featx.networks.architectures.forms.dense import SlidingLinear
from featx.networks.architectures.lenet import Rbf
from featx.networks.registry import architecture
from featx.networks.run_folder import is_run, read_run


class _ParametersOnMeta(TorchFunctionMode):
    """Makes the tensors modules allocate for their parameters on the meta device.

    Not `torch.device("meta")`: RegNet computes its widths with tensors, which then have no values.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.empty, torch.zeros, torch.ones):
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        return func(*args, **(kwargs or {}))


def construct(
    name: str, seed: int | None = None, published: str | None = None, classes: int | None = None
) -> nn.Module:
    """The network of that name in eval mode: on the meta device, or initialised from a seed.

    Args:
        published: the torchvision weights it is for (a vision transformer's size depends on them); by default
            the backbone's DEFAULT.
        classes: K, for a final layer that is replaced; by default the network's own.

    Raises:
        UnknownBackbone: no such network.
    """
    entry = architecture(name)
    if is_run(name):
        run = read_run(name)
        classes, published = classes or len(run.classes), published or run.published
    if seed is None and entry.external:  # may compute with the values of its tensors
        network = construct(name, 0, published, classes).to("meta")
    elif seed is None:
        with _ParametersOnMeta():
            network = entry.build(published, False).to("meta")
            if classes:
                replace_final_layer(network, classes)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = entry.build(published, True)
            if classes:
                replace_final_layer(network, classes)
    return network.eval().requires_grad_(False)


def final_layer(network: nn.Module) -> str:
    """The name of the module that makes the logits: the last linear layer, or the 1 x 1 convolution of SqueezeNet.

    Raises:
        UsageError: there is none.
    """
    candidates = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | Rbf | SlidingLinear) and not name.lower().startswith("aux")
    ]
    linear = [name for name in candidates if not isinstance(network.get_submodule(name), nn.Conv2d)]
    # Squeeze-and-excitation and attention have linear layers as well, but none of them comes last.
    last = ("classifier", "fc", "head", "heads")
    found: list[str] = [name for name in (linear or candidates) if name.split(".")[0] in last]
    if not found:  # a network of the user's own: whatever holds its last parameters, if that is linear
        holders = [
            name for name, module in network.named_modules() if next(module.parameters(False), None) is not None
        ]
        found = [name for name in holders[-1:] if name in linear]
    if not found:
        raise UsageError("this network has no final layer that featx could replace")
    return found[-1]


def auxiliary_layers(network: nn.Module) -> dict[str, str]:
    """The auxiliary heads of GoogLeNet and Inception: name of the head -> the layer that makes its logits.

    They take part in the training alone (Szegedy et al., CVPR 2015).
    """
    heads = {name: head for name, head in network.named_children() if name.lower().startswith("aux")}
    linear = {name: [n for n, m in head.named_modules() if isinstance(m, nn.Linear)] for name, head in heads.items()}
    return {name: f"{name}.{layers[-1]}" for name, layers in linear.items() if layers}


def auxiliary_logits(network: nn.Module, outputs: Any) -> dict[str, Tensor]:
    """What the auxiliary heads say, by their names, of what the network returns in training mode.

    torchvision's fields are logits, and aux_logits1 of aux1, or aux_logits of AuxLogits.
    """
    names = {name.lower().removeprefix("aux").removeprefix("logits"): name for name in auxiliary_layers(network)}
    given = outputs._asdict().items()
    return {names[field.removeprefix("aux_logits")]: values for field, values in given if field != "logits"}


def fill_auxiliary_heads(network: nn.Module, missing: Iterable[str], name: str, seed: int) -> None:
    """Put fresh auxiliary heads where the weights gave none, in place; their last layers stay as they are.

    Args:
        missing: the tensors that the weights did not give.
        name: of the network.
    """
    for head, layer in auxiliary_layers(network).items():
        if any(tensor.startswith(f"{head}.") and not tensor.startswith(f"{layer}.") for tensor in missing):
            fresh = construct(name, seed).get_submodule(head)
            last = layer.removeprefix(f"{head}.")
            setattr(fresh, last, network.get_submodule(layer))
            setattr(network, head, fresh)


def replace_final_layer(network: nn.Module, classes: int) -> None:
    """Put fresh layers of `classes` outputs where the network and its auxiliary heads make their logits, in place."""
    for name in (final_layer(network), *auxiliary_layers(network).values()):
        _replace(network, name, classes)


def _replace(network: nn.Module, name: str, classes: int) -> None:
    old = network.get_submodule(name)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, classes)
        nn.init.normal_(new.weight, std=0.01)  # type: ignore[arg-type]  # a Linear's weight is a tensor
        nn.init.zeros_(new.bias)  # type: ignore[arg-type]  # and so is its bias
    elif isinstance(old, Rbf):
        new = Rbf(old.in_features, classes)
    elif isinstance(old, SlidingLinear):
        raise UsageError("a network's dense form is not trained: train the network, and use its weights")
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, classes, old.kernel_size)  # type: ignore[arg-type]  # (1, 1)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)
