"""Random transforms of images, named in a config as classes of `torchvision.transforms.v2` and seeded for each image.

torchvision draws from torch's global generator, which every thread of a process shares: a training whose dropout draws from it at the same
time would not be repeatable. Here all draws of a thread come from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from actors.views import PictureTransform

Transform = Callable[[torch.Tensor], torch.Tensor]
"""Maps an image, float32 [..., 3, height, width] from 0 (black) to 1 (white), to one of the same shape."""
Specs = Sequence[Mapping[str, Mapping[str, Any]]]
"""One entry a transform, in order: the name of a class of `torchvision.transforms.v2` with its keyword arguments. An argument that itself
holds transforms, as RandomApply's, is such a sequence."""

_DRAW = (
    torch.rand,
    torch.randn,
    torch.randint,
    torch.randperm,
    torch.multinomial,
    torch.bernoulli,
    torch.normal,
    torch.Tensor.uniform_,
    torch.Tensor.normal_,
    torch.Tensor.bernoulli_,
    torch.Tensor.random_,
)
_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}
"""These take no generator."""


class _Drawn(TorchFunctionMode):
    """Within it, torch's random functions draw from `generator`, in this thread alone."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _LIKE:
            return _LIKE[func](args[0].shape, dtype=args[0].dtype, generator=self._generator, **kwargs)
        if func in _DRAW:
            kwargs = {"generator": self._generator, **kwargs}
        return func(*args, **kwargs)


def seeded(transform: Transform, seed: int) -> Transform:
    """`transform` with all that it draws from torch determined by `seed`, 0 to 2**63 - 1."""

    def apply(image: torch.Tensor) -> torch.Tensor:
        with _Drawn(torch.Generator().manual_seed(seed)):
            return transform(image)

    return apply


def build_transforms(specs: Specs) -> Transform:
    """A function that applies the transforms in order.

    Raises:
        ValueError: torchvision is not installed, or a transform does not exist, does not take its arguments, changes the size of an image,
            or draws from another generator than torch's.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ValueError(f"image transforms need torchvision, which cannot be imported: {error}; run `make install`") from error
    chain = [_built(v2, spec) for spec in specs]

    def apply(image: torch.Tensor) -> torch.Tensor:
        for transform in chain:
            image = transform(image)
        return image

    _check(apply, specs)
    return apply


def picture_transforms(specs: Specs) -> PictureTransform:
    """`build_transforms` for RGB pictures. Raises what that does."""
    transform = build_transforms(specs)

    def apply(image: Image.Image, seed: int) -> Image.Image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        changed = seeded(transform, seed)(pixels)[0].clamp(0.0, 1.0) * 255
        return Image.fromarray(changed.round().byte().permute(1, 2, 0).numpy())

    return apply


def _built(v2: Any, spec: object) -> Any:
    if not (isinstance(spec, Mapping) and len(spec) == 1):
        raise ValueError(f"a transform is {{NAME: {{ARGUMENT: VALUE}}}}, but {spec!r} was given")
    ((name, arguments),) = spec.items()
    found = getattr(v2, str(name), None)
    if not (isinstance(found, type) and issubclass(found, v2.Transform)):
        raise ValueError(f"torchvision.transforms.v2 has no transform {name!r}; its documentation lists them")
    arguments = {
        key: [_built(v2, one) for one in value] if key == "transforms" and isinstance(value, Sequence) else value
        for key, value in (arguments or {}).items()
    }
    try:
        return found(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"transform {name} cannot be built from {arguments}: {error}") from error


def _check(apply: Transform, specs: Specs) -> None:
    """Try the transforms on an image of random pixels with several seeds."""
    image = torch.rand((1, 3, 32, 48), generator=torch.Generator().manual_seed(0))
    for seed in range(8):
        try:
            first, second = seeded(apply, seed)(image), seeded(apply, seed)(image)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the transforms {list(specs)} cannot be applied to an image: {error}") from error
        if first.shape != image.shape or first.dtype != image.dtype:
            raise ValueError(
                f"the transforms {list(specs)} make an image {tuple(image.shape)} of {image.dtype} one of {tuple(first.shape)} of "
                f"{first.dtype}; only transforms that keep both can be used"
            )
        if not torch.equal(first, second):
            raise ValueError(f"the transforms {list(specs)} draw from another generator than torch's, so a run could not be repeated")
