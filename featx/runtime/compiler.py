"""Kernels made for one network, by torch.compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import cast

import torch
from torch import nn

from featx.errors import UsageError

_COMPILERS = ("g++", "clang++", "gcc", "clang", "cc")


def refuse_without_compiler(device: torch.device) -> None:
    """Raise UsageError if there is no C++ compiler, which a GPU's kernels are loaded with as well, or no Triton."""
    own = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((own,) if own else _COMPILERS)):
        looked = own or ", ".join(_COMPILERS)
        raise UsageError(
            f"--compile needs a C++ compiler, and none was found ({looked}); install one, or leave it out"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UsageError("--compile on a GPU needs Triton, which is not there: pip install triton, or leave it out")


def compiled(module: nn.Module) -> nn.Module:
    """The same module, compiled when it first runs, and again where its input's shape or its frozen layers change.

    Its kernels round otherwise than PyTorch's own.
    """
    return cast(nn.Module, torch.compile(module, dynamic=False))
