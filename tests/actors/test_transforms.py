"""Random transforms of images: repeatable, whatever other threads draw, and checked before they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actors.transforms import Specs, build_transforms, picture_transforms, seeded
from loop.config.run_config import load_config
from loop.errors import UserError
from loop.setup.assembly import build_policies

pytest.importorskip("torchvision", reason="transforms need torchvision: make install")

AFFINE = {"RandomAffine": {"degrees": 8, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "fill": 0.5}}
JITTER = {"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.6, "hue": 0.1}}
BLUR = {"RandomApply": {"p": 0.5, "transforms": [{"GaussianBlur": {"kernel_size": 3, "sigma": [0.3, 1.5]}}]}}
NOISE = {"GaussianNoise": {"sigma": 0.1}}
PIXELS = torch.rand((1, 3, 24, 32), generator=torch.Generator().manual_seed(1))


def test_a_seed_determines_every_draw_and_the_global_generator_is_left_alone() -> None:
    transform = build_transforms([AFFINE, JITTER, {"RandomGrayscale": {"p": 0.3}}, BLUR, NOISE])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = [seeded(transform, seed)(PIXELS) for seed in range(6)]
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    again = [seeded(transform, seed)(PIXELS) for seed in range(6)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({one.numpy().tobytes() for one in first}) == 6


def test_a_picture_is_changed_as_its_pixels_are() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    change = picture_transforms([{"RandomHorizontalFlip": {"p": 1.0}}])
    assert change(picture, 3).tobytes() == picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([{"RandomCrop": {"size": 10}}], "only transforms that keep both can be used"),
        ([{"ColourJitter": {}}], "has no transform 'ColourJitter'"),
        ([{"RandomAffine": {"angle": 8}}], "transform RandomAffine cannot be built from {'angle': 8}"),
        ([{"RandomApply": {"transforms": [{"Blur": {}}]}}], "has no transform 'Blur'"),
        ([{"Normalize": {"mean": [0.5, 0.5], "std": [0.1, 0.1]}}], "cannot be applied to an image"),
        ([AFFINE | JITTER], "a transform is {NAME: {ARGUMENT: VALUE}}"),
    ],
)
def test_what_cannot_be_used_is_refused(specs: Specs, expected: str) -> None:
    with pytest.raises(ValueError, match="transform") as caught:
        build_transforms(specs)
    assert expected in str(caught.value)


def test_views_that_cannot_be_made_are_refused_when_the_config_is_read() -> None:
    config = load_config(Path("loop/recipes/shapes.yaml"), ["correction.options.view_transforms=[{ColourJitter: {}}]"])
    with pytest.raises(UserError, match=r"correction view_transforms: torchvision\.transforms\.v2 has no transform 'ColourJitter'"):
        build_policies(config)
