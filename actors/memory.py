"""Memory of a process that shares its device with others."""

from __future__ import annotations

import ctypes
import gc

import torch


def give_back_memory() -> None:
    """Free what is no longer referred to. Of what is freed a process keeps most for itself: torch on a GPU, and the C library in main
    memory, where a neighbour could not have it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other C libraries have none
    if trim is not None:
        trim(0)
