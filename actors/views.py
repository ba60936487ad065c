"""Views of an image: what a model is shown instead of the raw pixels when it writes labels, and when it is asked again.

A teacher may look at a picture that is easier to read than the one its student will be trained on; the student then learns to
do without. Views are for generation and correction only: training and evaluation see the raw image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from policies.errors import PolicyError, running
from policies.registry import Registry, UnknownPolicyError

View = Callable[[Image.Image], Image.Image]
"""An RGB image in, an RGB image out. The same image always gives the same view."""

VIEWS: Registry[Image.Image] = Registry("view")

_BAND_PIXELS = 1 << 20


@VIEWS.register("raw")
def raw(image: Image.Image) -> Image.Image:
    """The image as it is."""
    return image


def find_view(name: str) -> View:
    """The view that `generation.view` names: a registered one, or a function as `module:name`.

    Raises:
        UnknownPolicyError: there is no such view, or what has this name cannot be called with one image.
        PolicyError: its module raises an error.
    """
    view = VIEWS.find(name)
    try:
        inspect.signature(view).bind(None)
    except (TypeError, ValueError) as error:  # ValueError: a builtin without a signature
        raise _no_view(name) from error
    if inspect.isclass(view):
        raise _no_view(name)
    return view


def _no_view(name: str) -> UnknownPolicyError:
    return UnknownPolicyError(f"{name!r} is not a view: expected a function that takes one image; docs/policies.md says what one needs")


def seen_through(view: View, image: Image.Image) -> Image.Image:
    """The view of an image.

    Raises:
        PolicyError: the view raised an error, or returned something other than an RGB image.
    """
    label = f"view {getattr(view, '__name__', type(view).__name__)!r}"
    with running(label):
        seen = view(image)
    if not isinstance(seen, Image.Image) or seen.mode != "RGB":
        found = f"an image of mode {seen.mode}" if isinstance(seen, Image.Image) else repr(seen)[:80]
        raise PolicyError(label, f"returned {found}; expected an RGB image")
    return seen


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
    for rows in bands(pixels):
        pixels[rows] = np.clip(pixels[rows] + rng.normal(0.0, 255 * noise, pixels[rows].shape), 0, 255)
    return Image.fromarray(pixels)


def bands(pixels: np.ndarray) -> Iterator[slice]:
    """The rows of an image in bands of bounded size: as floating point, a photo of 50 million pixels would take gigabytes."""
    height, width = pixels.shape[:2]
    num_rows = max(1, _BAND_PIXELS // width)
    return (slice(start, start + num_rows) for start in range(0, height, num_rows))
