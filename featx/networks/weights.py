"""Where a network's weights come from: torchvision's published files, a file of the user's, or a seed.

Nothing that is loaded can run: checkpoints are read with `weights_only=True` or as safetensors. Published files
are fetched by featx itself from torchvision's addresses into torch's own cache, checked against the hash in
their name, and checked again, in full, on every load.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor

from featx.errors import UsageError
from featx.networks.architectures.architecture import WeightsSource
from featx.networks.registry import architecture
from featx.networks.run_folder import is_run, read_run


def weights_of(backbone: str, spec: str) -> WeightsSource:
    """What `--weights SPEC` means for a backbone.

    Args:
        spec: "default", a torchvision name such as "IMAGENET1K_V1", a path to a .pth, .pt or .safetensors file,
            or "random:SEED".

    Raises:
        UsageError: none of these.
    """
    if match := re.fullmatch(r"random:(\d{1,18})", spec):
        return WeightsSource(spec, spec, seed=int(match[1]))
    if Path(spec).suffix in (".pth", ".pt", ".safetensors"):
        file = Path(spec)
        if not file.is_file():
            raise UsageError(f"--weights: no file {spec}")
        return WeightsSource(spec, file.name, file=file)
    if is_run(backbone) and spec == "default":
        run = read_run(backbone)
        run.refuse_unfinished()
        return WeightsSource("default", f"fine-tuned {run.backbone}", file=run.weights)
    if is_run(backbone):
        raise UsageError(
            f"--weights is {spec!r}; for {backbone} it can be default, random:SEED, a .pth or .safetensors file"
        )
    return architecture(backbone).weights.source(spec)


def sha256_of_state(state: dict[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over the names, types, shapes and bytes of all tensors, in order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
