"""Checkpoints: read without running any code in them, and put into a network."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featx.errors import WeightsMismatch


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file, by name. No code in the file is ever run.

    A dictionary that keeps them under "state_dict" or "model" is unwrapped, and the "module." that DataParallel
    puts before every name is taken off.

    Raises:
        WeightsMismatch: the file is damaged, holds code, or holds no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsMismatch(f"{path} is not a readable safetensors file: {error}") from error
    except Exception as error:  # torch.load raises pickle, zip, runtime, key and value errors alike
        raise WeightsMismatch(
            f"{path} cannot be read as plain weights ({type(error).__name__}): it is damaged or holds Python code, "
            f"which featx never runs. Save it again as a state_dict, or as .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsMismatch(f"{path} holds no state_dict (a dictionary of tensors by name)")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    tensors: dict[str, Tensor] = state
    return tensors


_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


def fit_state(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put a checkpoint's tensors into a network, on whatever device the network is (meta included).

    Raises:
        WeightsMismatch: naming the first tensor that is missing, left over or of another shape, with both shapes.
    """
    if any(_OLD_DENSENET.match(name) for name in state):  # DenseNet files from before torch 0.4
        state = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items()}
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            continue  # files from before torch 0.4.1 lack it, and it counts for nothing but training
        if name not in state:
            raise WeightsMismatch(f"{where} has no tensor {name} {tuple(tensor.shape)}, which the network needs")
        if state[name].shape != tensor.shape:
            raise WeightsMismatch(
                f"{where}: {name} is {tuple(state[name].shape)}, the network needs {tuple(tensor.shape)}"
            )
    for name, tensor in state.items():
        if name not in expected:
            raise WeightsMismatch(f"{where} has a tensor {name} {tuple(tensor.shape)} that the network lacks")
    ready = OrderedDict((n, t.to(expected[n].dtype)) for n, t in state.items())
    for name in expected:
        ready.setdefault(name, torch.zeros((), dtype=torch.long))
    # MNASNet reads its format's version from here and refuses a dictionary without one.
    ready._metadata = getattr(state, "_metadata", expected._metadata)  # type: ignore[attr-defined]  # torch's own
    network.load_state_dict(ready, assign=True)
