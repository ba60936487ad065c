"""Pixels, boxes and captions of a scene.

The shift is the distance from the labelled data: at 0 a light, even background and pure upright shapes; towards 1 the
background darkens and takes on a color of its own, hues drift (by the same amount for every object of an image, so that
colors stay distinct), saturation fades, objects turn, the picture gets blurred and grainy. No answer to a question changes.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from loop.sources.shapes.scene import SHAPES, Scene, Thing

IMAGE_SIZE = 48
"""Edge of the square image in pixels; a cell of the grid is 16 x 16."""

_CELL = IMAGE_SIZE // 3
_OVERSAMPLING = 4
_RADIUS = {"small": 4.2, "large": 7.0}
_HSV = {
    "red": (0.0, 0.90, 0.85),
    "orange": (0.083, 0.95, 0.95),
    "yellow": (0.153, 0.90, 0.95),
    "green": (0.345, 0.80, 0.65),
    "cyan": (0.50, 0.75, 0.85),
    "blue": (0.625, 0.85, 0.80),
    "purple": (0.765, 0.70, 0.70),
    "pink": (0.90, 0.45, 0.95),
}


def render(scene: Scene) -> Image.Image:
    """The RGB image of a scene, `IMAGE_SIZE` x `IMAGE_SIZE`, the same for the same scene everywhere."""
    rng = np.random.default_rng(scene.pixel_seed)
    shift = scene.shift
    hue_drift = 0.045 * shift + rng.uniform(-0.012, 0.012) * shift
    saturation = 1.0 - 0.35 * shift
    canvas = _background(rng, shift)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        hue, base_saturation, value = _HSV[thing.color]
        color = _rgb((hue + hue_drift + rng.uniform(-0.008, 0.008)) % 1.0, base_saturation * saturation, value * (1.0 - 0.2 * shift))
        angle = math.radians(rng.uniform(-1.0, 1.0) * (4.0 + 41.0 * shift))
        _draw(draw, thing, _center(thing, rng), angle, color)
    image = canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    if shift > 0.05:
        image = image.filter(ImageFilter.GaussianBlur(1.0 * shift))
    grain = rng.normal(0.0, 255 * (0.01 + 0.07 * shift), (IMAGE_SIZE, IMAGE_SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.float64) + grain, 0, 255).astype(np.uint8))


def boxes(scene: Scene) -> list[tuple[str, tuple[float, float, float, float]]]:
    """`(category, (x1, y1, x2, y2))` per object as a share of width and height, top left and bottom right, in reading order.

    The box is the object's nominal extent: jitter of a pixel and rotation are inside it.
    """
    found = []
    for thing in scene.things:
        x, y = _CELL * (thing.column + 0.5), _CELL * (thing.row + 0.5)
        half = min(_RADIUS[thing.size] + 1.0, _CELL / 2)
        found.append((f"{thing.color} {thing.shape}", tuple(edge / IMAGE_SIZE for edge in (x - half, y - half, x + half, y + half))))
    return found


def _background(rng: np.random.Generator, shift: float) -> Image.Image:
    value = 0.93 - 0.50 * shift + rng.uniform(-0.03, 0.03)
    tint = _rgb(rng.uniform(), 0.03 + 0.30 * shift * rng.uniform(0.5, 1.0), value)
    slope = rng.uniform(-0.15, 0.15, 2) * shift
    axis = np.linspace(-1.0, 1.0, IMAGE_SIZE)
    light = 1.0 + slope[0] * axis[:, None] + slope[1] * axis[None, :]
    pixels = np.clip(light[..., None] * np.array(tint), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((IMAGE_SIZE * _OVERSAMPLING, IMAGE_SIZE * _OVERSAMPLING), Image.Resampling.NEAREST)


def _center(thing: Thing, rng: np.random.Generator) -> tuple[float, float]:
    jitter = rng.uniform(-1.0, 1.0, 2)
    return (_CELL * (thing.column + 0.5) + jitter[0]) * _OVERSAMPLING, (_CELL * (thing.row + 0.5) + jitter[1]) * _OVERSAMPLING


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, min(saturation, 1.0), min(max(value, 0.0), 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw(draw: ImageDraw.ImageDraw, thing: Thing, center: tuple[float, float], angle: float, color: tuple[int, int, int]) -> None:
    radius = _RADIUS[thing.size] * _OVERSAMPLING
    if thing.shape == "circle":
        draw.circle(center, radius * 0.92, fill=color)
    elif thing.shape == "ring":
        draw.circle(center, radius * 0.96, outline=color, width=round(radius * 0.42))
    else:
        draw.polygon([_turn(x * radius, y * radius, angle, center) for x, y in _OUTLINES[thing.shape]], fill=color)


def _turn(x: float, y: float, angle: float, center: tuple[float, float]) -> tuple[float, float]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return center[0] + x * cosine - y * sine, center[1] + x * sine + y * cosine


def _regular(num_points: int, *radii: float) -> list[tuple[float, float]]:
    corners = range(num_points * len(radii))
    step = 2 * math.pi / len(corners)
    return [(radii[i % len(radii)] * math.sin(i * step), -radii[i % len(radii)] * math.cos(i * step)) for i in corners]


_OUTLINES = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": _regular(3, 1.05),
    "star": _regular(5, 1.1, 0.45),
    "cross": [
        (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
        (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3),
    ],
}  # fmt: skip
assert {"circle", "ring", *_OUTLINES} == set(SHAPES)
