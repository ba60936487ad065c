"""Pixels, boxes and captions of a scene."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from loop.sources.shapes.questions import captions
from loop.sources.shapes.render import IMAGE_SIZE, boxes, render
from loop.sources.shapes.scene import SHAPES, SIZES, Scene, Thing, image_id, scene_of

GOLDEN = {
    "shapes-1-000000-0000": "282c965d84d827b1",
    "shapes-1-000003-0150": "d814d2d23ef30f3f",
    "shapes-7-000042-0310": "cc525465191d8ceb",
    "shapes-9-000017-0700": "51bb395e47f6f76d",
    "shapes-9-123456-1000": "331c70f0c528ce25",
}
"""SHA-256 of the RGB bytes, its first 16 digits. A change here makes other images: the shipped model and every run depend on them."""


def pixels_of(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene), dtype=np.int64)


@pytest.mark.parametrize("identifier", GOLDEN)
def test_an_image_is_the_same_bytes_everywhere(identifier: str) -> None:
    image = render(scene_of(identifier))
    assert (image.mode, image.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == GOLDEN[identifier]


def test_boxes_are_exact_shares_of_the_image_in_reading_order() -> None:
    scene = Scene("any", 0.0, (Thing(0, "star", "red", "large"), Thing(4, "ring", "blue", "small"), Thing(8, "cross", "pink", "small")), 1)
    (first, first_box), (second, second_box), (third, third_box) = boxes(scene)
    assert (first, second, third) == ("red star", "blue ring", "pink cross")
    assert first_box == (0.0, 0.0, 1 / 3, 1 / 3)  # a large object may fill its cell
    assert second_box == pytest.approx((18.8 / 48, 18.8 / 48, 29.2 / 48, 29.2 / 48))
    assert third_box == pytest.approx((34.8 / 48, 34.8 / 48, 45.2 / 48, 45.2 / 48))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cell", [0, 5, 7])
def test_all_of_an_object_that_can_be_seen_is_inside_its_box(shape: str, size: str, cell: int) -> None:
    for pixel_seed in range(8):
        scene = Scene("any", 0.0, (Thing(cell, shape, "blue", size),), pixel_seed)
        pixels = pixels_of(scene)
        differs = np.abs(pixels - np.median(pixels.reshape(-1, 3), axis=0)).sum(-1) > 150
        rows, columns = np.nonzero(differs)
        ((_, (left, top, right, bottom)),) = boxes(scene)
        assert len(rows) > 15
        assert left * IMAGE_SIZE <= columns.min() + 1e-9
        assert columns.max() + 1 <= right * IMAGE_SIZE + 1e-9
        assert top * IMAGE_SIZE <= rows.min() + 1e-9
        assert rows.max() + 1 <= bottom * IMAGE_SIZE + 1e-9


def test_large_objects_cover_more_than_small_ones() -> None:
    for shape in SHAPES:
        areas = []
        for size in SIZES:
            pixels = pixels_of(Scene("any", 0.0, (Thing(4, shape, "purple", size),), 3))
            areas.append((np.abs(pixels - np.median(pixels.reshape(-1, 3), axis=0)).sum(-1) > 150).sum())
        assert areas[1] > 1.8 * areas[0]


def test_shift_changes_the_pixels_and_nothing_that_is_asked_for() -> None:
    scene = scene_of("shapes-7-000042-0310")
    renders = {shift: pixels_of(replace(scene, shift=shift)) for shift in (0.0, 0.25, 0.5, 0.75, 1.0)}
    distances = [np.abs(renders[shift] - renders[0.0]).mean() for shift in (0.25, 0.5, 0.75, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] > 5
    for shift in renders:
        moved = replace(scene, shift=shift)
        assert boxes(moved) == boxes(scene)
        assert captions(moved) == captions(scene)


def test_an_image_grows_darker_and_noisier_with_shift() -> None:
    def brightness_and_grain(shift: float) -> tuple[float, float]:
        images = [pixels_of(Scene("any", shift, (Thing(8, "ring", "red", "small"),), seed)) for seed in range(10)]
        corner = np.stack(images)[:, :16, :16].astype(float)
        return float(corner.mean()), float(np.diff(corner, axis=2).std())

    near, far = brightness_and_grain(0.0), brightness_and_grain(1.0)
    assert near[0] > 200 > 150 > far[0]
    assert far[1] > 4 * near[1]


def test_captions_grow_in_detail_and_are_exact() -> None:
    assert captions(scene_of("shapes-7-000042-0310")) == [
        "There are 4 objects.",
        "A yellow ring, a cyan triangle, a purple ring and a red cross.",
        "There is a large yellow ring at the top center. There is a large cyan triangle at the middle left. "
        "There is a small purple ring at the middle right. There is a large red cross at the bottom center.",
    ]
    assert captions(Scene("one", 0.0, (Thing(4, "square", "orange", "small"),), 0)) == [
        "There is 1 object.",
        "An orange square.",
        "There is a small orange square at the center.",
    ]


def test_images_of_a_world_differ() -> None:
    digests = {hashlib.sha256(render(scene_of(image_id(1, index, 0.1))).tobytes()).hexdigest() for index in range(60)}
    assert len(digests) == 60
