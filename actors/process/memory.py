"""Returns the unused memory of a process to its device and system."""

from __future__ import annotations

import ctypes
import gc

import torch


def release_memory() -> None:
    """Collect garbage, then empty the caches of freed memory that torch (on a GPU) and the C library (in main memory) keep and that
    other processes could not use."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
