"""Pictures that no two numbers share, and copies of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth patches of colour, as different as photos are."""
    patches = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def copy_of(image: Image.Image, factor: float = 0.5, quality: int = 40) -> Image.Image:
    """The image at another size, as a JPEG."""
    sink = io.BytesIO()
    image.resize((round(image.width * factor), round(image.height * factor))).save(sink, "JPEG", quality=quality)
    return Image.open(sink).convert("RGB")


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
