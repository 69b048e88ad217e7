"""How much memory is free, and what the C library does with memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

_LEAST = 1 << 28
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST = -1, -3, 1 << 30  # of glibc's malloc.h

# Activations of one block should stay in the processor's cache; measured best: AlexNet 16-32, VGG16 4 images.
CPU_BLOCK_BYTES = 64 << 20
GPU_BLOCK_BYTES = 1 << 30
MAX_CPU_BATCH, MAX_GPU_BATCH = 32, 128


def free_memory(device: torch.device) -> int:
    """Bytes that can still be used there; on a CPU what the system or the container's limit leaves."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()  # what PyTorch's allocator caches counts as used
        return int(torch.cuda.mem_get_info(device)[0])
    return free_main_memory()


def free_main_memory() -> int:
    """Bytes that the system or the container's limit leaves to this process."""
    free = min([int(psutil.virtual_memory().available), *_left_by_limits()])
    return max(free, _LEAST)


def _left_by_limits(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What the limits of this process's control groups leave, and that of its address space.

    A container, Slurm and systemd each limit a group of their own; those above it count as well.
    """
    found = []
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root if controllers == "" else root / "memory"
        names = ("memory.max", "memory.current") if controllers == "" else _VERSION_1
        folder = base / path.lstrip("/")
        for level in (folder, *folder.parents):
            limit, used = (_number(level / name) for name in names)
            if limit is not None and used is not None:
                found.append(limit - used)
            if level == base:
                break
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        found.append(most - psutil.Process().memory_info().vms)
    return found


_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def return_freed_memory() -> None:
    """Return what was freed to the system now, where the C library is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Have the C library use freed memory again instead of returning it to the system, where it is glibc.

    For processes of our own: it cannot be undone. Every activation is some megabytes. By default each is taken from
    the system and returned, and the system clears it every time: a tenth of VGG16's time in extraction, a quarter of
    alexnet-mini's in training.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        # Old versions take 32 MB at most. With neither the library is left to find its own thresholds.
        if library.mallopt(_M_MMAP_THRESHOLD, _LARGEST) or library.mallopt(_M_MMAP_THRESHOLD, 32 << 20):
            library.mallopt(_M_TRIM_THRESHOLD, _LARGEST)


# What libraries say when there is no memory, beside Python's own MemoryError.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory", "bad_alloc")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _NO_MEMORY)
    )


def default_batch_size(largest_activation: int, device_type: str) -> int:
    """A power of two such that one block's largest tensor fits the processor's cache, or a GPU's memory, well.

    >>> default_batch_size(64 * 55 * 55 * 4, "cpu")   # AlexNet
    32
    >>> default_batch_size(64 * 224 * 224 * 4, "cpu")  # VGG16
    4
    """
    budget, most = (CPU_BLOCK_BYTES, MAX_CPU_BATCH) if device_type == "cpu" else (GPU_BLOCK_BYTES, MAX_GPU_BATCH)
    fitting = max(1, budget // max(1, largest_activation))
    return int(min(most, 1 << (fitting.bit_length() - 1)))
