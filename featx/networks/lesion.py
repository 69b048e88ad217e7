"""A trained network some of whose units are silent: what was it worth, without training again?

Source:
    Morcos et al., On the importance of single directions for generalization, ICLR 2018: units are set to 0.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featx.errors import UsageError
from featx.networks.build import construct
from featx.networks.registry import literature_layers
from featx.networks.run_folder import DESCRIPTION, TRAINED_ON, Run, read_run


def parse_lesion(spec: str) -> dict[str, float]:
    """layer -> share of its units, of "conv3=0.5,fc6".

    >>> parse_lesion("conv3=0.5,fc6")
    {'conv3': 0.5, 'fc6': 1.0}
    """
    found = {}
    for word in spec.split(","):
        part = re.fullmatch(r"\s*([A-Za-z0-9_]+)\s*(?:=\s*(0?\.\d+|1|1\.0*|0\.\d+)\s*)?", word)
        if part is None or (part[2] and not 0 < float(part[2]) <= 1):
            raise UsageError(f"--lesion is {spec!r}; it can be conv3=0.5,fc6: layers, and the share of their units")
        found[part[1]] = float(part[2] or 1)
    return found


def lesioned_run(run: Run, spec: str, seed: int, folder: Path) -> Run:
    """A copy of a run with units of some layers silent: behind their ReLU they are 0, whatever the image.

    Args:
        folder: where the copy is written.
        seed: which units, where not all of a layer are meant.

    Raises:
        UsageError: no such layer, or the layer that makes the scores; a network without layer names.
    """
    state = load_file(run.weights)
    network = construct(str(run.folder))
    silence(network, state, parse_lesion(spec), seed)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / run.weights.name
    save_file(state, copy)
    for name in (DESCRIPTION, TRAINED_ON):
        if (run.folder / name).exists():
            shutil.copyfile(run.folder / name, folder / name)
    return read_run(folder)


def silence(network: nn.Module, state: dict[str, Tensor], lesions: dict[str, float], seed: int) -> None:
    """Set to 0, in place, what makes some units of layers: weights and bias, and those of the BatchNorm behind."""
    layers = {layer.name: layer for layer in literature_layers(network) if layer.modules}
    if not layers:
        raise UsageError("--lesion needs a network whose layers have names, AlexNet, VGG or one made like them")
    last = list(layers)[-1]
    generator = np.random.default_rng(seed)
    for name, share in lesions.items():
        if name not in layers or name == last:
            able = ", ".join(list(layers)[:-1])
            raise UsageError(f"--lesion {name}: there is no such layer to silence; there is {able}")
        count = 0
        for module_name in layers[name].modules:
            module = network.get_submodule(module_name)
            if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d):
                continue
            if not count:
                count = len(state[f"{module_name}.weight"])
                units = torch.from_numpy(np.sort(generator.permutation(count)[: max(1, round(share * count))]))
            for kind in ("weight", "bias"):
                if f"{module_name}.{kind}" in state:
                    state[f"{module_name}.{kind}"][units] = 0
