"""A name becomes a network without trained weights: torchvision's, one of featx's own, or that of a run."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models import WeightsEnum, get_model, get_model_weights

from featx.errors import UnknownBackbone, UsageError
from featx.networks.mini import MINI_NAMES, MINI_PREPROCESSING, mini
from featx.networks.names import nearest_names
from featx.networks.runs import is_run, read_run

# torchvision builds these two as they were when their published weights were trained: with auxiliary heads
# (unused in eval mode) and their own input scaling.
_AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": True, "transform_input": True},
    "inception_v3": {"aux_logits": True, "transform_input": True},
}


def backbone_names() -> list[str]:
    """The names of featx's own networks and all torchvision classifiers, AlexNet and VGG first."""
    names = [*torchvision.models.list_models(module=torchvision.models), *MINI_NAMES]
    return sorted(names, key=lambda name: (not name.startswith(("alexnet", "vgg")), name))


def refuse_unknown(name: str) -> None:
    """Raise UnknownBackbone, with the nearest names, unless there is a network or a run of that name."""
    if name not in backbone_names() and not is_run(name):
        raise UnknownBackbone(
            f"no network {name!r}. Nearest: {nearest_names(name, backbone_names())}. "
            f"It can be alexnet, vgg11, vgg13, vgg16, vgg19 (each also with _bn), alexnet-mini, vgg-mini, any "
            f"torchvision classifier, or the folder of a featx finetune run"
        )


def published_weights(name: str, weights: str | None = None) -> WeightsEnum:
    """torchvision's weights of that name for one of its networks, by default the network's DEFAULT."""
    entries = get_model_weights(name)
    return entries[weights.split(".")[-1]] if weights else entries.DEFAULT


# What initialisations do to a tensor; without values there is nothing to do, but PyTorch would load SymPy for it.
_FILLING = ("normal_", "uniform_", "fill_", "zero_", "erfinv_", "mul_", "add_", "clamp_")


class _ParametersOnMeta(TorchFunctionMode):
    """Makes the tensors modules allocate for their parameters on the meta device.

    Not `torch.device("meta")`: RegNet computes its widths with tensors, which then have no values.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.empty, torch.zeros, torch.ones):
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        if getattr(func, "__name__", "") in _FILLING:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


def construct(
    name: str, seed: int | None = None, published: str | None = None, classes: int | None = None
) -> nn.Module:
    """The network of that name in eval mode: on the meta device, or initialised from a seed.

    Args:
        published: the torchvision weights it is for (a vision transformer's size depends on them); by default
            the backbone's DEFAULT.
        classes: K, for a final layer that is made anew; by default the network's own.

    Raises:
        UnknownBackbone: no such network.
    """
    refuse_unknown(name)
    if name not in backbone_names():
        run = read_run(name)
        return construct(run.backbone, seed, classes=classes or len(run.classes))
    if seed is None:
        with _ParametersOnMeta():
            network = _build(name, published, init=False).to("meta")
            if classes:
                replace_final_layer(network, classes)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _build(name, published, init=True)
            if classes:
                replace_final_layer(network, classes)
    return network.eval().requires_grad_(False)


def _build(name: str, published: str | None, *, init: bool) -> nn.Module:
    if name in MINI_NAMES:
        return mini(name)
    options = dict(_AS_PUBLISHED.get(name, {}))
    if name in _AS_PUBLISHED:
        options["init_weights"] = init
    if name.startswith("vit_"):
        options["image_size"] = published_weights(name, published).meta["min_size"][0]
    network: nn.Module = get_model(name, weights=None, **options)
    return network


def final_layer(network: nn.Module) -> str:
    """The name of the module that makes the logits: the last linear layer, or the 1 x 1 convolution of SqueezeNet.

    Raises:
        UsageError: there is none.
    """
    candidates = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.lower().startswith("aux")
    ]
    linear = [name for name in candidates if isinstance(network.get_submodule(name), nn.Linear)]
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
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, classes, old.kernel_size)  # type: ignore[arg-type]  # (1, 1)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)


def default_preprocessing(name: str, weights: str | None = None) -> dict[str, Any]:
    """The preprocessing of a backbone's weights, as plain values.

    Args:
        weights: a torchvision weights name; by default the backbone's DEFAULT.
    """
    if name in MINI_NAMES:
        return dict(MINI_PREPROCESSING)
    if name not in backbone_names():
        return dict(read_run(name).preprocess)
    transforms = published_weights(name, weights).transforms()
    return {
        "resize": int(transforms.resize_size[0]),
        "crop": int(transforms.crop_size[0]),
        "interpolation": transforms.interpolation.value,
        "mean": [float(v) for v in transforms.mean],
        "std": [float(v) for v in transforms.std],
    }
