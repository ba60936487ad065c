"""Memory of a process that shares its device with others."""

from __future__ import annotations

import gc

import torch


def give_back_memory() -> None:
    """Free what is no longer referred to. On a GPU torch keeps freed memory for this process, and a neighbour could not have it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
