"""Reads the pixels of training images, caches them within a bound, and augments them by a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.images import ImageSource
from actors.training.job import Hyperparameters
from actors.transforms import build_transforms, seeded
from actors.views import drawn_seed

CACHE_BYTES = 1 << 30
"""Room for 38,000 images of 48 x 48 x 3 float32."""

_TOGETHER = "batch_num_images"
"""Tensor of image processors that treat an image differently beside others: LLaVA-OneVision cuts only a single one into tiles."""
_BLANK_SIZE = (64, 64)
_MID_GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """One image as model inputs, or the images of one conversation if the image processor must see them together."""

    tensors: Mapping[str, torch.Tensor]
    """All tensors from the image processor; the first dimension is 1, or the image's patches."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each original image in pixels."""


class PixelReader:
    """Turns image ids into model inputs, and caches as many of them as fit into `CACHE_BYTES`.

    Nothing is evicted: training cycles through all images, so evicting the oldest would never leave a hit.
    """

    def __init__(self, image_processor: Any, source: ImageSource) -> None:
        self._image_processor = image_processor
        self._source = source
        self._kept: dict[tuple[str, ...], ImageInputs] = {}
        self._free_bytes = CACHE_BYTES

    def read(self, image_id: str) -> ImageInputs:
        """The image's tensors.

        Raises:
            BadImageError: the source cannot read the image.
        """
        return self._cached((image_id,))

    def read_all(self, image_ids: Sequence[str]) -> tuple[ImageInputs, ...]:
        """The images of one conversation, in order; raises what `read` does."""
        if len(image_ids) > 1 and _TOGETHER in self._image_processor.model_input_names:
            return (self._cached(tuple(image_ids)),)
        return tuple(self.read(image_id) for image_id in image_ids)

    def _cached(self, image_ids: tuple[str, ...]) -> ImageInputs:
        kept = self._kept.get(image_ids)
        if kept is not None:
            return kept
        made = self.inputs_of([self._source.open(image_id) for image_id in image_ids])
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in made.tensors.values())
        if num_bytes <= self._free_bytes:
            self._kept[image_ids] = made
            self._free_bytes -= num_bytes
        return made

    def blank(self) -> ImageInputs:
        """A placeholder for an image that cannot be read."""
        return blank_inputs(self._image_processor)

    def inputs_of(self, images: list[Image.Image]) -> ImageInputs:
        """The tensors of one image, or of the images of one conversation together."""
        return _processed(self._image_processor, images)


def blank_inputs(image_processor: Any) -> ImageInputs:
    """A grey image as model inputs."""
    return _processed(image_processor, [Image.new("RGB", _BLANK_SIZE, _MID_GREY)])


def _processed(image_processor: Any, images: list[Image.Image]) -> ImageInputs:
    processed = image_processor(images if len(images) == 1 else [images], return_tensors="pt")
    tensors = {name: value for name, value in processed.items() if isinstance(value, torch.Tensor)}
    return ImageInputs(tensors, tuple(image.size for image in images))


class Augmentation:
    """Random brightness, color gain, transforms and noise on normalised pixels, seeded by (seed, step, position in the global batch)."""

    def __init__(self, hyper: Hyperparameters, image_processor: Any, seed: int) -> None:
        """Raises `ValueError` if the transforms cannot be used; see `build_transforms`."""
        self._noise, self._brightness, self._color_jitter = hyper.pixel_noise, hyper.brightness, hyper.color_jitter
        self._transform = build_transforms(hyper.transforms) if hyper.transforms else None
        self._seed = seed
        normalises = bool(getattr(image_processor, "do_normalize", False))
        mean, std = (image_processor.image_mean, image_processor.image_std) if normalises else ((0.0,) * 3, (1.0,) * 3)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)

    @property
    def is_on(self) -> bool:
        return self._transform is not None or max(self._noise, self._brightness, self._color_jitter) > 0

    def apply(self, pixels: torch.Tensor, step: int, position: int, place: int = 0) -> torch.Tensor:
        """An augmented copy of one image's pixels, [..., 3, height, width], clamped between black and white.

        Args:
            pixels: of the image.
            step: of the training.
            position: of the sample in the global batch.
            place: of the image among those of its sample.

        Raises:
            ValueError: the pixels have another layout.
        """
        if pixels.ndim < 3 or pixels.shape[-3] != 3:
            raise ValueError(
                f"pixel augmentation needs pixel values [..., 3, height, width]; this image processor makes {tuple(pixels.shape)}; "
                "set pixel_noise, brightness and color_jitter to 0, and transforms to []"
            )
        entropy = [step, position, *([place] if place else [])]
        rng = np.random.default_rng([self._seed, 2, *entropy])
        brightness, *channels, noise = rng.uniform(-1.0, 1.0, 5)
        gains = [(1.0 + self._brightness * brightness) * (1.0 + self._color_jitter * channel) for channel in channels]
        picture = (pixels * self._std + self._mean) * torch.tensor(gains, dtype=torch.float32).view(3, 1, 1)
        if self._transform is not None:
            picture = seeded(self._transform, drawn_seed(self._seed, 4, *entropy))(picture.clamp_(0.0, 1.0))
        if self._noise:
            drawn = torch.from_numpy(rng.standard_normal(tuple(pixels.shape), dtype=np.float32))
            picture = picture + drawn * (self._noise * abs(noise))
        return (picture.clamp(0.0, 1.0) - self._mean) / self._std
