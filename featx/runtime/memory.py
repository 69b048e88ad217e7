"""How much memory is free, and what the C library does with memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

_LEAST = 1 << 28
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST = -1, -3, 1 << 30  # of glibc's malloc.h


def free_memory(device: torch.device) -> int:
    """Bytes that can still be used there; on a CPU what the system or the container's limit leaves."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()  # what PyTorch's allocator caches counts as used
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, _LEAST)


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
