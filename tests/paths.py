"""Folders that tests read: the checkout, and real data where it lies beside the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "loop" / "recipes"
DATA = ROOT.parent / "shared" / "data"
"""Photos, annotations, predictions and expected scores. Not part of the project: tests that need it skip without it."""
