"""One line that says on what a measurement was made."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import torchvision

from featx.extraction.provenance import versions


def machine() -> str:
    """Processor, cores, GPU and versions."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {torch.backends.cpu.get_cpu_capability()}{gpu}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"{versions()['decoder']}, featx {versions()['featx']}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
