"""What usually goes together: in sets with a habit, and in no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from loop.sources.drawings.source import DrawingsImages
from loop.sources.shapes.scene import COLORS, SHAPES, Thing, image_id, scene_of
from loop.sources.shapes.source import ShapesImages
from loop.sources.worlds.grid import NUM_CELLS, GridThing
from loop.sources.worlds.habits import usual

NUM_IMAGES = 600


def scenes_of_shapes(habit: float) -> list[tuple[Thing, ...]]:
    source = ShapesImages(5, 0.0, 0.1, NUM_IMAGES, habit)
    return [source.scene(one).things for one in source.image_ids()]


def share_in_place(scenes: Sequence[Sequence[GridThing]], number_of: dict[str, int], by: str) -> float:
    places = usual(len(number_of), NUM_CELLS)
    things = [thing for scene in scenes for thing in scene]
    return sum(thing.cell == places[number_of[getattr(thing, by)]] for thing in things) / len(things)


def test_a_strength_of_0_is_the_set_as_it_was_and_another_strength_another_image() -> None:
    assert ShapesImages(5, 0.0, 0.1, 3, 0.0).image_ids() == ShapesImages(5, 0.0, 0.1, 3).image_ids()
    assert [image_id(5, 1, 0.1, habit) for habit in (0.0, 0.25, 1.0)] == [
        "shapes-5-000001-0100", "shapes-5-000001-0100-0250", "shapes-5-000001-0100-1000"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="not an image of the shapes world"):
        scene_of("shapes-5-000001-0100-0000")
    with pytest.raises(ValueError, match=r"habit 1\.5 is outside"):
        image_id(5, 1, 0.1, 1.5)


def test_colors_and_places_of_shapes_follow_the_habit() -> None:
    colors, numbers = usual(len(SHAPES), len(COLORS)), {shape: number for number, shape in enumerate(SHAPES)}

    def share_of_usual_colors(scenes: list[tuple[Thing, ...]]) -> float:
        things = [thing for scene in scenes for thing in scene]
        return sum(thing.color == COLORS[colors[numbers[thing.shape]]] for thing in things) / len(things)

    without, strong = scenes_of_shapes(0.0), scenes_of_shapes(0.7)
    assert share_of_usual_colors(without) == pytest.approx(1 / 8, abs=0.04)
    assert share_of_usual_colors(strong) == pytest.approx(0.7 + 0.3 / 8, abs=0.05)
    assert share_in_place(without, numbers, "shape") == pytest.approx(1 / 9, abs=0.04)
    assert share_in_place(strong, numbers, "shape") > 0.6  # less than 0.7: a usual place may be taken
    assert Counter(len(scene) for scene in strong).keys() == {1, 2, 3, 4}


def test_drawings_have_companions_that_no_other_set_has() -> None:
    def share_of_companions(habit: float) -> float:
        source = DrawingsImages(5, ("noto",), NUM_IMAGES, habit=habit)
        scenes = [{thing.number for thing in source.scene(one).things} for one in source.image_ids()]
        companions, several = usual(80, 80), [scene for scene in scenes if len(scene) > 1]
        return sum(any(companions[one] in scene for one in scene) for scene in several) / len(several)

    assert share_of_companions(0.0) < 0.1
    assert share_of_companions(0.5) > 0.5
    assert share_of_companions(1.0) == 1.0


@pytest.mark.parametrize(("num_kinds", "num_options"), [(6, 6), (6, 8), (6, 9), (80, 80), (80, 9)])
def test_what_is_usual_is_spread_evenly_and_nothing_is_its_own_companion(num_kinds: int, num_options: int) -> None:
    found = usual(num_kinds, num_options)
    counts = Counter(found)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(counts) == min(num_kinds, num_options)
    if num_kinds == num_options:
        assert all(one != own for own, one in enumerate(found))
        seen, one = {0}, found[0]
        while one not in seen:
            seen.add(one)
            one = found[one]
        assert len(seen) == num_kinds
