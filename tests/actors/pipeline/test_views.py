"""Views: what a teacher is shown."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from actors.shards import ShardImages
from actors.views import View, find_view, perturbed, raw
from loop.sources.shapes.source import ShapesImages
from loop.sources.shapes.views import flat_background
from policies.errors import PolicyError
from policies.registry import UnknownPolicyError

SOURCE = ShapesImages(3, 0.6, 0.9, 12)


def test_a_flat_background_is_lighter_and_more_even_and_keeps_what_stands_out() -> None:
    for image_id in SOURCE.image_ids():
        image = SOURCE.open(image_id)
        before, after = (np.asarray(picture, dtype=float) for picture in (image, flat_background(image)))
        ground = np.median(after.reshape(-1, 3), axis=0)
        assert (ground >= 225).all()
        near_ground = np.abs(after - ground).max(axis=-1) < 30
        assert 0.5 < near_ground.mean() < 0.999
        assert after[near_ground].std() < before[near_ground].std()
        assert flat_background(image).size == image.size


def test_a_view_is_found_by_its_name_or_its_module() -> None:
    assert find_view("raw") is raw
    assert find_view("loop.sources.shapes.views:flat_background") is flat_background


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rew", "unknown view 'rew'; expected one of ['raw'] or your own as module:Name; did you mean 'raw'?"),
        ("loop.sources.shapes.views:flat", "cannot load view"),
        ("loop.sources.shapes.views:_PAPER", "is not a view: expected a function that takes one image"),
        ("operator:add", "is not a view"),
        ("loop.sources.folder:ImageFolder", "is not a view"),
    ],
)
def test_what_is_not_a_view_is_refused(name: str, expected: str) -> None:
    with pytest.raises(UnknownPolicyError) as caught:
        find_view(name)
    assert expected in str(caught.value)


def broken(image: Image.Image) -> Image.Image:
    raise KeyError(image.mode)


def gray(image: Image.Image) -> Image.Image:
    return image.convert("L")


@pytest.mark.parametrize(
    ("view", "expected"), [(broken, "view 'broken' raised KeyError: 'RGB'"), (gray, "view 'gray' returned an image of mode L")]
)
def test_a_view_that_fails_is_an_error_of_its_own_code(view: View, expected: str) -> None:
    with pytest.raises(PolicyError) as caught:
        ShardImages(SOURCE, view).open(SOURCE.image_ids()[0])
    assert expected in str(caught.value)


def test_generator_and_corrector_are_shown_the_view_and_it_is_made_once() -> None:
    calls: list[int] = []

    def counted(image):  # noqa: ANN001, ANN202
        calls.append(1)
        return flat_background(image)

    images = ShardImages(SOURCE, counted)
    first = SOURCE.image_ids()[0]
    assert images.open(first) is images.open(first)
    assert len(calls) == 1
    assert np.array_equal(np.asarray(images.open(first)), np.asarray(flat_background(SOURCE.open(first))))
    assert np.array_equal(np.asarray(ShardImages(SOURCE).open(first)), np.asarray(raw(SOURCE.open(first))))


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_a_perturbed_look_is_as_noisy_as_asked_and_the_same_for_a_seed(noise: float) -> None:
    image = ShapesImages(3, 0.5, 0.5, 1).open("shapes-3-000000-0500")
    one, same, other = (np.asarray(perturbed(image, noise, seed), dtype=float) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert abs((one - np.asarray(image, dtype=float)).std() / 255 - noise) < 0.25 * noise


def test_a_shifted_look_moves_the_picture_by_a_share_of_its_side_and_leaves_no_gap() -> None:
    image = Image.new("RGB", (100, 100), (200, 200, 200))
    image.paste((0, 0, 0), (40, 40, 60, 60))
    for seed in range(5):
        moved = perturbed(image, 0.0, seed, shift=0.05)
        dark = np.argwhere(np.asarray(moved)[..., 0] < 100).mean(axis=0)
        assert 4.0 < float(np.hypot(*(dark - 49.5))) < 6.0
        assert (np.asarray(moved)[[0, -1]] == 200).all()
