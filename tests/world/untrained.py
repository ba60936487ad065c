"""Untrained models of the embedded world."""

from __future__ import annotations

from pathlib import Path

from loop.models.seed.instructblip import build_instructblip, build_instructblip_processor
from loop.models.seed.minigpt4 import build_minigpt4, build_minigpt4_processor
from loop.models.seed.model import build_model, build_processor


def save_untrained(folder: Path) -> None:
    """Write an untrained LLaVA and its processor as a Hugging Face folder."""
    build_model().save_pretrained(folder)
    build_processor().save_pretrained(folder)


def save_untrained_instructblip(folder: Path) -> None:
    """The same for an InstructBLIP."""
    build_instructblip().save_pretrained(folder)
    build_instructblip_processor().save_pretrained(folder)


def save_untrained_minigpt4(folder: Path) -> None:
    """The same for a MiniGPT-4."""
    build_minigpt4().save_pretrained(folder)
    build_minigpt4_processor().save_pretrained(folder)
