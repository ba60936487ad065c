"""Pixels and boxes of a scene of `drawings`: every thing as its house draws it, on a plain or textured ground.

Grounds and the jitter of place, scale and angle follow the same distribution in every house, so that houses differ in their drawings alone.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from loop.sources.drawings.scene import Drawn, Scene
from loop.sources.worlds.grid import pick

IMAGE_SIZE = 96
"""Edge of the square image in pixels; a cell of the grid is 32 x 32."""

_CELL = IMAGE_SIZE // 3
_LARGEST_PX, _SMALLEST_PX = 30.0, 24.0
"""Edge of a drawn tile, whose drawing has a margin of a few pixels in itself."""
_MAX_SHIFT_PX = 1.5
_MAX_DEGREES = 8.0
_PLAIN_SHARE = 0.4
_GRAIN = 3.0
"""Standard deviation of the grain, in levels of 0..255."""


def render(scene: Scene, tiles: Sequence[Image.Image]) -> Image.Image:
    """The RGB image of a scene, `IMAGE_SIZE` x `IMAGE_SIZE`; `tiles` are the drawings of its house."""
    rng = np.random.default_rng(scene.pixel_seed)
    canvas = _ground(rng)
    for thing in scene.things:
        side = round(rng.uniform(_SMALLEST_PX, _LARGEST_PX))
        angle = rng.uniform(-_MAX_DEGREES, _MAX_DEGREES)
        drawn = tiles[thing.number].resize((side, side), Image.Resampling.BOX)
        drawn = drawn.rotate(angle, Image.Resampling.BILINEAR)
        x, y = ((cell + 0.5) * _CELL - side / 2 + rng.uniform(-_MAX_SHIFT_PX, _MAX_SHIFT_PX) for cell in (thing.column, thing.row))
        canvas.paste(drawn, (round(x), round(y)), drawn)
    grain = rng.normal(0.0, _GRAIN, (IMAGE_SIZE, IMAGE_SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(canvas, dtype=np.float64) + grain, 0, 255).astype(np.uint8))


def boxes(scene: Scene) -> list[tuple[str, tuple[float, float, float, float]]]:
    """`(name, (x1, y1, x2, y2))` per thing as a share of width and height, top left and bottom right, in reading order: its cell."""
    return [(thing.name, _box(thing)) for thing in scene.things]


def _box(thing: Drawn) -> tuple[float, float, float, float]:
    return thing.column / 3, thing.row / 3, (thing.column + 1) / 3, (thing.row + 1) / 3


def _ground(rng: np.random.Generator) -> Image.Image:
    """One color, or two that are near each other in a pattern."""
    hue, saturation, value = rng.uniform(), rng.uniform(0.0, 0.35), rng.uniform(0.6, 1.0)
    first = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    second = np.array(colorsys.hsv_to_rgb((hue + rng.uniform(-0.08, 0.08)) % 1.0, saturation, value - rng.uniform(0.05, 0.15)))
    texture = _plain if rng.random() < _PLAIN_SHARE else pick(rng, _TEXTURES)
    weights = texture(rng)
    pixels = (first + weights[..., None] * (second - first)) * 255
    return Image.fromarray(pixels.astype(np.uint8))


def _plain(rng: np.random.Generator) -> np.ndarray:
    return np.zeros((IMAGE_SIZE, IMAGE_SIZE))


_AXIS = np.arange(IMAGE_SIZE, dtype=np.float64)


def _slanted(rng: np.random.Generator) -> np.ndarray:
    """Distance of every pixel along a drawn direction."""
    angle = rng.uniform(0, np.pi)
    return np.cos(angle) * _AXIS[None, :] + np.sin(angle) * _AXIS[:, None]


def _gradient(rng: np.random.Generator) -> np.ndarray:
    along = _slanted(rng)
    return (along - along.min()) / (along.max() - along.min())


def _stripes(rng: np.random.Generator) -> np.ndarray:
    return (np.sin(_slanted(rng) * 2 * np.pi / rng.uniform(6, 24)) > 0).astype(np.float64)


def _checks(rng: np.random.Generator) -> np.ndarray:
    side = int(rng.integers(4, 16))
    return ((_AXIS[None, :] // side + _AXIS[:, None] // side) % 2).astype(np.float64)


def _waves(rng: np.random.Generator) -> np.ndarray:
    waves = [np.sin(_slanted(rng) * 2 * np.pi / rng.uniform(8, 40) + rng.uniform(0, 2 * np.pi)) for _ in range(3)]
    return (np.sum(waves, axis=0) + 3) / 6


def _speckles(rng: np.random.Generator) -> np.ndarray:
    side = IMAGE_SIZE // int(rng.integers(1, 5))
    coarse = Image.fromarray((rng.random((side, side)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.NEAREST)) / 255.0


_TEXTURES: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (_gradient, _stripes, _checks, _waves, _speckles)
