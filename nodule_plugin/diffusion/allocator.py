"""Keeping freed memory for the next step of training on a CPU."""

from __future__ import annotations

import ctypes
import platform

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory(device: str | torch.device = "cpu") -> bool:
    """Let this process keep the memory it frees, instead of handing it back to the system and asking for it anew.

    Every step of training allocates the same large activations. glibc gives each back to the system when it is freed,
    and the system clears its pages when they are asked for again, which takes a third of a step on a CPU. PyTorch's
    performance tuning guide recommends another allocator for that reason; glibc's own does as well once it is told
    to (mallopt(3): M_MMAP_MAX 0, M_TRIM_THRESHOLD -1). The process's memory then stays at its peak until it ends.

    Args:
        device: where training runs; PyTorch keeps a GPU's memory by itself.

    Returns:
        Whether anything was set: False on a GPU, and where the C library is not glibc (musl, macOS, Windows).
    """
    if torch.device(device).type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
