"""Marks that tests leave in a folder to change what small actors do. Without torch: processes that need no more start in a second."""

from __future__ import annotations

from pathlib import Path


def told_to(mark: Path) -> bool:
    """Whether there is a mark, or one for a single time, which is used up."""
    once = mark.with_name(f"{mark.name}_once")
    if once.exists():
        once.unlink()
        return True
    return mark.exists()
