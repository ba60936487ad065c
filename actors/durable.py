"""What is on disk when a machine loses its power: a file's bytes once the file is synced, a name once its folder is."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Make a file's bytes, or the list of names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make a file, or a folder with all that is in it, durable."""
    for each in (*path.rglob("*"), path):
        fsync(each)
