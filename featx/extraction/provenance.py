"""Versions and hardware, for the provenance of a file."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from pathlib import Path

import torch

from featx import __version__
from featx.extraction.engine import Engine
from featx.images.decode import decoder_version


def versions(decode: str = "cpu") -> dict[str, str]:
    """What features depend on besides the recipe.

    Args:
        decode: who decodes JPEGs; torchcodec has a part in all but "cpu".
    """
    codec = {} if decode == "cpu" else {"torchcodec": importlib.metadata.version("torchcodec")}
    return {
        "featx": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision_version(),
        "decoder": decoder_version(),
        **codec,
    }


@functools.cache
def torchvision_version() -> str:
    """torchvision.__version__, which its package's metadata shortens, without loading it."""
    spec = importlib.util.find_spec("torchvision")
    file = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    found = re.search(r"__version__ = '([^']+)'", file.read_text()) if file is not None and file.is_file() else None
    return found[1] if found else importlib.metadata.version("torchvision")


def hardware(engine: Engine) -> str:
    """The processor's instruction set and how the network runs on it, or the GPU's name."""
    device = engine.recipe.device
    if engine.gpu is not None:
        how = "a CUDA graph" if engine.gpu.is_graph else "kernel by kernel"
        parts = "" if engine.gpu.rows == engine.recipe.batch_size else f", {engine.gpu.rows} images at once"
        return f"{torch.cuda.get_device_name(device)}, {how}{parts}"
    how = "packed weights" if engine.packed else "PyTorch's modules"
    return f"CPU {torch.backends.cpu.get_cpu_capability()}, {how}"
