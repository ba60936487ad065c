"""A scene follows from its id and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.sources.shapes.scene import COLORS, MAX_OBJECTS, POSITIONS, SHAPES, SIZES, Thing, image_id, scene_of

GOLDEN = {
    "shapes-7-000042-0310": (
        0.31,
        (
            Thing(1, "ring", "yellow", "large"),
            Thing(3, "triangle", "cyan", "large"),
            Thing(5, "ring", "purple", "small"),
            Thing(7, "cross", "red", "large"),
        ),
        1681710286,
    ),
    "shapes-1-000000-0000": (0.0, (Thing(4, "circle", "orange", "large"), Thing(6, "star", "orange", "small")), 3732435016),
    "shapes-9-123456-1000": (1.0, (Thing(5, "circle", "red", "small"),), 2116373766),
}


@pytest.mark.parametrize("identifier", GOLDEN)
def test_a_scene_is_drawn_from_its_id_alone(identifier: str) -> None:
    scene = scene_of(identifier)
    assert (scene.shift, scene.things, scene.pixel_seed) == GOLDEN[identifier]
    assert scene.image_id == identifier
    assert scene == scene_of(identifier)


@given(st.integers(0, 10**9), st.integers(0, 2 * 10**6), st.integers(0, 1000))
def test_every_id_that_is_written_is_read_back(seed: int, index: int, thousandths: int) -> None:
    identifier = image_id(seed, index, thousandths / 1000)
    scene = scene_of(identifier)
    assert scene.image_id == identifier
    assert scene.shift == thousandths / 1000
    assert 1 <= len(scene.things) <= MAX_OBJECTS
    cells = [thing.cell for thing in scene.things]
    assert cells == sorted(set(cells))
    assert set(cells) <= set(range(9))


@pytest.mark.parametrize(
    "identifier",
    [
        "",
        "shapes",
        "shapes-7-42-0310",  # another name for image 42
        "shapes-07-000042-0310",
        "shapes-7-0000042-0310",
        "shapes-7-000042-310",
        "shapes-7-000042-1001",
        "shapes--7-000042-0310",
        "shapes-7-000042-0310\n",
        " shapes-7-000042-0310",
        "shapes-7-000042-0310-1",
        "Shapes-7-000042-0310",
        "shapes-\u0667-000042-0310",  # a digit of another script
        "../shapes-7-000042-0310",
        "photo.jpg",
    ],
)
def test_ids_that_this_world_never_writes_are_refused(identifier: str) -> None:
    with pytest.raises(ValueError, match="expected shapes-SEED-INDEX-SHIFT"):
        scene_of(identifier)


@pytest.mark.parametrize("shift", [-0.001, 1.001, float("nan"), float("inf")])
def test_no_image_has_a_shift_outside_0_to_1(shift: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        image_id(1, 2, shift)


@pytest.mark.parametrize(
    ("cell", "position", "row", "column"),
    [
        (0, "top left", 0, 0),
        (1, "top center", 0, 1),
        (2, "top right", 0, 2),
        (3, "middle left", 1, 0),
        (4, "center", 1, 1),
        (5, "middle right", 1, 2),
        (6, "bottom left", 2, 0),
        (7, "bottom center", 2, 1),
        (8, "bottom right", 2, 2),
    ],
)
def test_a_cell_has_one_name_row_and_column(cell: int, position: str, row: int, column: int) -> None:
    thing = Thing(cell, "ring", "red", "small")
    assert (thing.position, thing.row, thing.column) == (position, row, column)
    assert POSITIONS.index(position) == cell


def test_scenes_are_drawn_evenly() -> None:
    scenes = [scene_of(image_id(5, index, 0.1)) for index in range(1500)]
    things = [thing for scene in scenes for thing in scene.things]
    for count in range(1, MAX_OBJECTS + 1):
        assert sum(len(scene.things) == count for scene in scenes) / 1500 == pytest.approx(1 / MAX_OBJECTS, abs=0.05)
    for attribute, options in (("shape", SHAPES), ("color", COLORS), ("size", SIZES), ("cell", range(9))):
        for option in options:
            assert sum(getattr(thing, attribute) == option for thing in things) / len(things) == pytest.approx(1 / len(options), abs=0.03)


def test_worlds_share_no_scene() -> None:
    first, second = ({scene_of(image_id(seed, index, 0.1)).pixel_seed for index in range(200)} for seed in (1, 2))
    assert not first & second
