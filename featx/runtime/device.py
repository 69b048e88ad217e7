"""The device that computes, and the precision it computes with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from featx.errors import DeviceUnavailable, UsageError
from featx.runtime.environment import read_environment

_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def choose_device(spec: str) -> torch.device:
    """The device `--device SPEC` means; of several processes that torchrun has started, each has its own GPU.

    Raises:
        DeviceUnavailable: a GPU was asked for and is not there. There is no falling back.
    """
    if spec == "auto":
        return _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(spec)
    except RuntimeError:
        raise UsageError(f"--device is {spec!r}; it can be cpu, cuda, cuda:N or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device is {spec!r}; it can be cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable(f"--device {spec}: this machine has no usable CUDA device. Use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceUnavailable(f"--device {spec}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
    return _own_gpu() if device == torch.device("cuda") else device


def _own_gpu() -> torch.device:
    """The GPU of this process: of its local rank, if it is one of several."""
    local_rank = read_environment().local_rank
    return (
        torch.device("cuda") if local_rank is None else torch.device("cuda", local_rank % torch.cuda.device_count())
    )


@contextlib.contextmanager
def strict_precision(precision: str = "fp32") -> Iterator[None]:
    """Float32 means float32 on a GPU: TF32 only where it was asked for; the same kernels every time.

    For the whole process: one thread at a time, or all of them with the same precision.
    """
    cudnn: Any = torch.backends.cudnn
    mode = "tf32" if precision == "tf32" else "ieee"
    # One by one: `cudnn.flags` also writes the older switches, and PyTorch refuses a mixture of both.
    wanted = [
        (torch.backends.cuda.matmul, "fp32_precision", mode), (cudnn.conv, "fp32_precision", mode),
        (cudnn, "enabled", True), (cudnn, "benchmark", False), (cudnn, "deterministic", True),
    ]  # fmt: skip
    before = [getattr(where, name) for where, name, _ in wanted]
    try:
        for where, name, value in wanted:
            setattr(where, name, value)
        yield
    finally:
        for (where, name, _), value in zip(wanted, before, strict=True):
            setattr(where, name, value)


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy from the CPU to the device; to a GPU without waiting for what it is doing."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU had too little memory: torch says so, the libraries it calls say it in words of their own."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _OUT_OF_MEMORY)
