"""POPE's questions for any images whose objects are known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loop.errors import UserError
from loop.scoring.pope import Objects, pope_questions, read_objects, world_objects, write_questions
from loop.sources.drawings.houses import SHIPPED, read_things
from loop.sources.shapes.questions import truth
from loop.sources.shapes.scene import scene_of
from loop.sources.worlds.build import named_images
from loop.sources.worlds.habits import usual
from policies.benchmarks import BENCHMARKS, parse_document
from policies.benchmarks.pope import SPLITS
from tests.paths import DATA

COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}, {"id": 3, "file_name": "3.jpg"}],
    "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "apple"}],
    "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 1, "category_id": 7}, {"image_id": 2, "category_id": 8}],
}


def test_shapes_questions_are_of_the_worlds_own_grammar_and_their_labels_are_the_truth() -> None:
    objects = world_objects("shapes:seed=7,num_images=30,max_shift=0.2")
    questions = pope_questions(objects, SPLITS, 4, None, 0, short=True)
    for question in questions:
        answer = truth(scene_of(question.image), question.text).answer
        assert answer.startswith("Yes," if question.answers == ("yes",) else "No,"), question
    assert {question.split for question in questions} == set(SPLITS)
    assert Counter(question.answers[0] for question in questions)["yes"] * 2 == len(questions)


def test_questions_about_drawings_and_what_usually_goes_together_in_a_labelled_set() -> None:
    asked, labelled = (f"drawings:styles=noto,seed={seed},num_images=200,habit={habit}" for seed, habit in ((7, 0), (1, 1)))
    objects, counted = world_objects(asked), world_objects(labelled)
    questions = pope_questions(objects, ["adversarial"], 2, None, 0, short=True, counted=counted)
    companions, names = usual(80, 80), read_things(SHIPPED).names
    absent = {one.image: one.text for one in questions if one.answers == ("no",)}
    assert len(absent) == 200
    usual_ones = sum(
        any(f" {names[companion]}?" in text for thing in objects[image] for companion in _beside(names.index(thing), companions))
        for image, text in absent.items()
    )
    assert usual_ones > 180  # the companions of everything in an image may be there, and then something else is asked about
    source = named_images("drawings", "--images")
    for question in questions:
        answer = source.world.grammar.truth(source.scene(question.image), question.text).answer
        assert answer.startswith("Yes," if question.answers == ("yes",) else "No,"), question


def _beside(number: int, companions: tuple[int, ...]) -> tuple[int, int]:
    """What usually follows a thing, and what it usually follows."""
    return companions[number], companions.index(number)


def test_questions_written_are_read_by_the_benchmark(tmp_path: Path) -> None:
    questions = pope_questions({"1.jpg": ["cat"], "2.jpg": ["apple"]}, ["random", "popular"], 2, None, 0, short=False)
    write_questions(tmp_path / "pope.jsonl", questions)
    assert BENCHMARKS.build("pope").read([parse_document("pope.jsonl", (tmp_path / "pope.jsonl").read_bytes())]) == questions
    assert [question.text for question in questions[:2]] == ["Is there a cat in the image?", "Is there an apple in the image?"]
    assert [question.question_id for question in questions] == [str(number) for number in range(1, 9)]


def test_fewer_images_are_drawn_by_the_seed_and_their_questions_do_not_change() -> None:
    objects = world_objects("shapes:seed=1,num_images=40")
    asked = {(one.image, one.split, one.text) for one in pope_questions(objects, SPLITS, 2, None, 5, short=True)}
    some = [pope_questions(objects, SPLITS, 2, 10, seed, short=True) for seed in (5, 5, 6)]
    assert some[0] == some[1]
    assert len({one.image for one in some[0]}) == 10
    assert {one.image for one in some[0]} != {one.image for one in some[2]}
    assert {(one.image, one.split, one.text) for one in some[0]} <= asked


def test_objects_of_coco_and_of_lines(tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text(json.dumps(COCO))
    expected: Objects = {"1.jpg": ["cat", "cat"], "2.jpg": ["apple"], "3.jpg": []}
    assert read_objects(tmp_path / "instances.json") == expected
    lines = [json.dumps({"image": image, "instances": [{"category": one} for one in names]}) for image, names in expected.items()]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    assert read_objects(tmp_path / "lines.jsonl") == expected


@pytest.mark.parametrize(("content", "says"), [
    ({**COCO, "annotations": [{"image_id": 9, "category_id": 7}]}, "image_id 9 is not among the file's images"),
    ({**COCO, "annotations": [{"image_id": 1, "category_id": 9}]}, "category_id 9 is not among the file's categories"),
    ({"annotations": []}, "no list of objects 'images'"),
    ({**COCO, "images": [{"id": 1}]}, "no field 'file_name'"),
    ([{"image": "1.jpg", "instances": [{"name": "cat"}]}], "expected a list of objects with category"),
])  # fmt: skip
def test_files_of_another_form_are_refused(tmp_path: Path, content: Any, says: str) -> None:
    (tmp_path / "file.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        read_objects(tmp_path / "file.json")


@pytest.mark.parametrize("text", ["shapes", "shapes:seed=1", "shapes:seed=x,num_images=3", "shapes:seed=1,num_images=3,what=2",
                                  "shapes:seed=1,num_images=3,min_shift=0.5,max_shift=0.1", "shapes:seed=1,num_images=3,styles=noto",
                                  "drawings:seed=1,num_images=3", "drawings:styles=noto+noto,seed=1,num_images=3"])  # fmt: skip
def test_a_set_of_a_world_that_cannot_be_is_refused(text: str) -> None:
    world = text.partition(":")[0]
    with pytest.raises(UserError, match=f"--objects is .*expected, for example, {world}:s"):
        world_objects(text)


@pytest.mark.parametrize(("objects", "changes", "says"), [
    ({"a": ["cat"]}, {}, "no question can be asked"),
    ({"a": ["cat"], "b": ["dog"]}, {"num_per_image": 3}, "even number"),
    ({"a": ["cat"], "b": ["dog"]}, {"num_images": 0}, "expected at least 1"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(objects: Objects, changes: dict[str, int], says: str) -> None:
    options: dict[str, Any] = {"num_per_image": 2, "num_images": None, **changes}
    with pytest.raises(UserError, match=says):
        pope_questions(objects, ["random"], options["num_per_image"], options["num_images"], 0, short=False)


def test_coco_files_of_the_public_data_are_read() -> None:
    if not DATA.is_dir():
        pytest.skip("the folder shared/data with public benchmark files is not here")
    objects = read_objects(DATA / "llava_caps_boxes.jsonl")
    questions = pope_questions(objects, SPLITS, 6, 20, 0, short=False)
    assert len(objects) == 48
    assert len({one.image for one in questions}) == 20
    assert all(
        (one.text.split(" in the image")[0].split(" ", 3)[3] in objects[one.image]) == (one.answers == ("yes",)) for one in questions
    )
