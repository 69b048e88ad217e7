"""A name becomes a network without trained weights: torchvision's, one of featx's own, or that of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from featx.errors import UsageError
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
    if seed is None:
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
        if isinstance(module, nn.Linear | nn.Conv2d | Rbf) and not name.lower().startswith("aux")
    ]
    linear = [name for name in candidates if not isinstance(network.get_submodule(name), nn.Conv2d)]
    # Squeeze-and-excitation and attention have linear layers as well, but none of them comes last.
    last = ("classifier", "fc", "head", "heads")
    found: list[str] = [name for name in (linear or candidates) if name.split(".")[0] in last]
    if not found:
        raise UsageError("this network has no final layer that featx could replace")
    return found[-1]


def replace_final_layer(network: nn.Module, classes: int) -> None:
    """Put a fresh layer of `classes` outputs where the network makes its logits, in place."""
    name = final_layer(network)
    old = network.get_submodule(name)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, classes)
        nn.init.normal_(new.weight, std=0.01)  # type: ignore[arg-type]  # a Linear's weight is a tensor
        nn.init.zeros_(new.bias)  # type: ignore[arg-type]  # and so is its bias
    elif isinstance(old, Rbf):
        new = Rbf(old.in_features, classes)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, classes, old.kernel_size)  # type: ignore[arg-type]  # (1, 1)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)
