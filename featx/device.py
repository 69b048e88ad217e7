"""The device that computes, and how much memory there is to compute in."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featx.errors import DeviceUnavailable, UsageError
from featx.lean_import import want_meta_kernels

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST = -1, -3, 1 << 30  # of glibc's malloc.h
_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def choose_device(spec: str) -> torch.device:
    """The device `--device SPEC` means; of several processes that torchrun has started, each has its own GPU.

    Raises:
        DeviceUnavailable: a GPU was asked for and is not there. There is no falling back.
    """
    device = _device(spec)
    if device.type == "cuda":
        want_meta_kernels()  # every GPU has random generators
    return device


def _device(spec: str) -> torch.device:
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
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "LOCAL_RANK" not in os.environ:
        return torch.device("cuda")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


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


def free_memory(device: torch.device) -> int:
    """Bytes that can still be used there; on a CPU what the system or the container's limit leaves."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps for later counts as used
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        # Memory that holds copies of files counts as free: the system gives it away when it is asked for.
        kilobytes = next(line.split()[1] for line in meminfo.read_text().splitlines() if "MemAvailable" in line)
        free = int(kilobytes) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 1 << 28)


def keep_freed_memory() -> None:
    """Have the C library use freed memory again instead of giving it back, where it is glibc.

    Every activation is some megabytes. By default each is taken from the system and given back, and the system clears
    it every time: a tenth of VGG16's time in extraction, a quarter of alexnet-mini's in training.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        # Old versions take 32 MB at most. With neither the library is left to find its own thresholds.
        if library.mallopt(_M_MMAP_THRESHOLD, _LARGEST) or library.mallopt(_M_MMAP_THRESHOLD, 32 << 20):
            library.mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU had too little memory: torch says so, the libraries it calls say it in words of their own."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _OUT_OF_MEMORY)
