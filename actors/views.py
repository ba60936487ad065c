"""Views of an image: what a model is shown instead of the raw pixels when it writes labels, and when it is asked again.

A teacher may look at a picture that is easier to read than the one its student will be trained on; the student then learns to
do without. Views are for generation and correction only: training and evaluation see the raw image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFilter

View = Callable[[Image.Image], Image.Image]

_BAND_PIXELS = 1 << 20
_BLUR_PIXELS = 0.7
_THRESHOLD = 45.0
"""Levels (0..255, largest over the channels) from the background's color at which a pixel counts as foreground for certain."""
_PAPER = 235.0
"""Level of the light, even background that the labelled images of `shapes` have."""


def raw(image: Image.Image) -> Image.Image:
    """The image as it is."""
    return image


def flat_background(image: Image.Image) -> Image.Image:
    """The image with its background made light and even: slightly blurred against grain, then every pixel blended towards
    `_PAPER` the nearer its color is to the image's median color. For pictures of a few objects on one ground."""
    pixels = np.array(image.filter(ImageFilter.GaussianBlur(_BLUR_PIXELS)))
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    for rows in _bands(pixels):
        distance = np.abs(pixels[rows] - ground).max(axis=-1, keepdims=True)
        foreground = np.clip(2 * distance / _THRESHOLD - 1, 0.0, 1.0)
        pixels[rows] = foreground * pixels[rows] + (1 - foreground) * _PAPER
    return Image.fromarray(pixels)


VIEWS: dict[str, View] = {"raw": raw, "flat_background": flat_background}
"""Views by the name that `generation.view` gives them."""


def perturbed(image: Image.Image, noise: float, seed: int, shift: float = 0.0) -> Image.Image:
    """An independent look at an image: moved a little, and grainier.

    Args:
        image: RGB.
        noise: standard deviation of normal noise on the pixels, where white is 1.
        seed: of the direction and the noise.
        shift: distance it is moved in a random direction, as a share of its shorter side; its edge pixels fill what becomes free.
    """
    rng = np.random.default_rng(seed)
    if shift:
        angle, distance = rng.uniform(0, 2 * np.pi), shift * min(image.size)
        margin = int(np.ceil(distance)) + 1
        wide = Image.fromarray(np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
        place = (1, 0, margin + distance * np.cos(angle), 0, 1, margin + distance * np.sin(angle))
        image = wide.transform(image.size, Image.Transform.AFFINE, place, resample=Image.Resampling.BILINEAR)
    pixels = np.array(image)
    for rows in _bands(pixels):
        pixels[rows] = np.clip(pixels[rows] + rng.normal(0.0, 255 * noise, pixels[rows].shape), 0, 255)
    return Image.fromarray(pixels)


def _bands(pixels: np.ndarray) -> Iterator[slice]:
    """The rows of an image in bands of bounded size: as floating point, a photo of 50 million pixels would take gigabytes."""
    height, width = pixels.shape[:2]
    num_rows = max(1, _BAND_PIXELS // width)
    return (slice(start, start + num_rows) for start in range(0, height, num_rows))
