"""Syncs files and folders to disk. A file's bytes survive a power loss once it is synced, its name once its folder is."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make a file, or a folder and everything in it, durable."""
    for each in (*path.rglob("*"), path):
        fsync(each)
