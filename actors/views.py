"""Views of an image: what a model sees instead of the raw pixels in generation and correction.

A teacher may see an image that is easier to read than the one its student is trained on; the student then learns to read the
harder one. Training and evaluation always use the raw image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from actors.images import LazyImage, opened
from policies.errors import PolicyError, running
from policies.registry import Registry, UnknownPolicyError

View = Callable[[Image.Image], Image.Image]
"""Maps an RGB image to an RGB image, deterministically. Several threads may call it at the same time."""

PictureTransform = Callable[[Image.Image, int], Image.Image]
"""Random changes of an RGB image that a seed determines; see `actors.transforms.picture_transforms`."""

VIEWS: Registry[Image.Image] = Registry("view")

_BAND_PIXELS = 1 << 20


@VIEWS.register("raw")
def raw(image: Image.Image) -> Image.Image:
    """The image unchanged."""
    return image


def find_view(name: str) -> View:
    """The view that `generation.view` names: a registered one, or a function as `module:name`.

    Raises:
        UnknownPolicyError: there is no such view, or it cannot be called with one image.
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
    """An independent view of an image: slightly shifted, with noise.

    Args:
        image: RGB.
        noise: standard deviation of Gaussian noise on the pixels, where white is 1.
        seed: seed of the direction and the noise.
        shift: distance of the shift in a random direction, as a share of the shorter side; edge pixels fill the gap.
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


@dataclass(frozen=True, slots=True)
class PerturbedImage:
    """`perturbed` as a `LazyImage`: the pixels are computed when they are needed."""

    image: Image.Image | LazyImage
    noise: float
    seed: int
    shift: float
    transform: PictureTransform | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def open(self) -> Image.Image:
        image = perturbed(opened(self.image), self.noise, self.seed, self.shift)
        return image if self.transform is None else self.transform(image, self.seed)


def drawn_seed(*place: int) -> int:
    """A 63-bit seed, as torch takes them, of the draw that the numbers in `place` identify."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]) >> 1


def bands(pixels: np.ndarray) -> Iterator[slice]:
    """The rows of an image in bands of bounded size: a whole photo of 50 million pixels takes gigabytes as floating point."""
    height, width = pixels.shape[:2]
    num_rows = max(1, _BAND_PIXELS // width)
    return (slice(start, start + num_rows) for start in range(0, height, num_rows))
