"""A view for this world: an image that its teacher may be shown instead of the raw one.

Named in a config as `generation.view: loop.sources.shapes.views:flat_background`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from actors.views import bands

_BLUR_PIXELS = 0.7
_THRESHOLD = 45.0
"""Levels (0..255, largest over the channels) from the background's color at which a pixel certainly counts as foreground."""
_PAPER = 235.0
"""Level of the light, even background that the images near shift 0 have."""


def flat_background(image: Image.Image) -> Image.Image:
    """The image with a light and even background: slightly blurred against grain, then every pixel is blended towards `_PAPER`, the
    more the nearer its color is to the image's median color. For pictures of a few objects on one ground."""
    pixels = np.array(image.filter(ImageFilter.GaussianBlur(_BLUR_PIXELS)))
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    for rows in bands(pixels):
        distance = np.abs(pixels[rows] - ground).max(axis=-1, keepdims=True)
        foreground = np.clip(2 * distance / _THRESHOLD - 1, 0.0, 1.0)
        pixels[rows] = foreground * pixels[rows] + (1 - foreground) * _PAPER
    return Image.fromarray(pixels)
