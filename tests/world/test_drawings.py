"""The world of drawings: scenes, pixels, questions, claims and sources."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest

from actors.images import BadImageError, ObjectOracle, Oracle
from loop.sources.drawings.consistency import FollowsFromDescription, described_scene
from loop.sources.drawings.houses import SHIPPED, house_names, read_house, read_things
from loop.sources.drawings.questions import grammar_of
from loop.sources.drawings.render import IMAGE_SIZE, boxes, render
from loop.sources.drawings.scene import Scene, image_id, scene_of, thing_of
from loop.sources.drawings.source import DrawingsImages, world_of
from loop.sources.worlds.claims import Claims
from loop.sources.worlds.grammar import Premise
from loop.sources.worlds.kinds import description
from loop.sources.worlds.teaching import ExactTeacher, text_view
from policies.generation.instructions import QuestionType
from policies.records import Reason
from policies.teaching.prompts import teaching_task
from tests.policies.make import make_record

THINGS = read_things(SHIPPED)
GRAMMAR, WORLD = grammar_of(THINGS), world_of(THINGS)
SOURCE = DrawingsImages(seed=3, styles=("noto", "fluent"), num_images=60)


def placed(**cells: int) -> Scene:
    """A scene of things by name, in cells."""
    things = [thing_of(THINGS, THINGS.names.index(name.replace("_", " ")), cell) for name, cell in cells.items()]
    return Scene("by hand", "noto", tuple(sorted(things, key=lambda thing: thing.cell)), 0)


SCENE = placed(dog=0, fire_engine=4, apple=5, cat=7)
GOLDEN = {
    "drawings-noto-7-000042": "c874f1e0e70da17f",
    "drawings-openmoji-7-000042": "db80a475f03e31ba",
    "drawings-twemoji-1-000000-0600": "3f063b872ae43e44",
}
"""SHA-256 of the RGB bytes, its first 16 digits. A change here makes other images: the shipped model and every run depend on them."""


@pytest.mark.parametrize("identifier", GOLDEN)
def test_an_image_is_the_same_bytes_everywhere(identifier: str) -> None:
    style = identifier.split("-")[1]
    image = DrawingsImages(0, (style,), 1).open(identifier)
    assert (image.mode, image.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == GOLDEN[identifier]


def test_a_scene_follows_from_its_id_and_is_the_same_in_every_house() -> None:
    scenes = [scene_of(image_id(style, 7, 42), THINGS) for style in ("noto", "noto", "twemoji", "some-other.house")]
    assert scenes[0] == scenes[1]
    assert [scene.things for scene in scenes] == [scenes[0].things] * 4
    assert [scene.style for scene in scenes[1:]] == ["noto", "twemoji", "some-other.house"]


@pytest.mark.parametrize("identifier", [
    "", "drawings-noto-7-42", "drawings-noto-07-000042", "drawings-noto-7-000042-0000", "drawings-noto-7-000042-1001", "drawings--7-000042",
    "drawings-noto-7-000042\n", "drawings-../x-7-000042", "shapes-7-000042-0310", "photo.jpg",
])  # fmt: skip
def test_ids_that_this_world_never_writes_are_refused(identifier: str) -> None:
    with pytest.raises(BadImageError, match="not an image of the drawings world; expected drawings-STYLE-SEED-INDEX"):
        SOURCE.open(identifier)


def test_a_set_draws_evenly_from_its_houses_and_a_smaller_one_is_its_beginning() -> None:
    ids = SOURCE.image_ids()
    assert ids == pickle.loads(pickle.dumps(SOURCE)).image_ids()
    assert len(set(ids)) == 60
    assert 20 <= sum("noto" in one for one in ids) <= 40
    assert replace(SOURCE, num_images=20).image_ids() == ids[:20]
    with pytest.raises(BadImageError, match="style twemoji; this set has noto, fluent"):
        SOURCE.open(image_id("twemoji", 3, 1))


def test_every_thing_of_every_shipped_house_is_seen_in_its_box() -> None:
    assert house_names(SHIPPED) == ["fluent", "noto", "openmoji", "twemoji"]
    for style in house_names(SHIPPED):
        for number, name in enumerate(THINGS.names):
            scene = Scene("any", style, (thing_of(THINGS, number, number % 9),), number)
            ((category, box),) = boxes(scene)
            bare = render(replace(scene, things=()), read_house(SHIPPED, style))
            drawn, empty = (np.asarray(image, dtype=int) for image in (render(scene, read_house(SHIPPED, style)), bare))
            rows, columns = np.nonzero(np.abs(drawn - empty).max(axis=-1) > 30)
            left, top, right, bottom = (edge * IMAGE_SIZE for edge in box)
            assert category == name
            assert len(rows) > 20, (style, name)
            assert left <= columns.min()
            assert columns.max() < right
            assert top <= rows.min()
            assert rows.max() < bottom


@pytest.mark.parametrize(("question", "answer"), [
    ("Which vehicle is there?", "The vehicle is a fire engine."),
    ("What kind of object is at the middle right?", "The object at the middle right is a food."),
    ("How many animals are there?", "There are 2 animals."),
    ("How many things are there?", "There are no things."),
    ("Where is the fire engine?", "The fire engine is at the center."),
    ("How many objects are there?", "There are 4 objects."),
    ("Is there an apple?", "Yes, there is an apple."),
    ("Is there a pear?", "No, there is no pear."),
    ("What is at the top left?", "A dog is at the top left."),
    ("Is the dog to the left of the fire engine?", "The dog is at the top left. The fire engine is at the center. So yes."),
    ("Is the cat above the apple?", "The cat is at the bottom center. The apple is at the middle right. So no."),
    ("Are the objects at the top left and at the bottom center of the same kind?",
     "The object at the top left is an animal. The object at the bottom center is an animal. So yes."),
    ("Are there more animals than foods?", "There are 2 animals. There is 1 food. So yes."),
    ("What can be seen in the image?", description(SCENE)),
])  # fmt: skip
def test_a_question_is_answered_right(question: str, answer: str) -> None:
    right = GRAMMAR.truth(SCENE, question)
    assert (right.premise, right.answer) == (Premise.TRUE, answer)
    assert GRAMMAR.is_correct(SCENE, question, answer)
    assert not GRAMMAR.is_correct(SCENE, question, answer.replace("is", "was").replace("are", "were"))


@pytest.mark.parametrize(("question", "reply"), [
    ("Where is the pear?", "There is no pear."),
    ("Which animal is there?", "There is more than one animal."),
    ("Which thing is there?", "There is no thing."),
    ("What kind of object is at the top right?", "There is nothing at the top right."),
    ("Is the pear above the cat?", "There is no pear."),
])  # fmt: skip
def test_a_false_premise_is_said_to_be_one(question: str, reply: str) -> None:
    right = GRAMMAR.truth(SCENE, question)
    assert (right.premise, right.answer) == (Premise.FALSE, reply)
    assert not GRAMMAR.is_correct(SCENE, question, reply)


@pytest.mark.parametrize("question", ["", "Where is the unicorn?", "Which animals is there?", "How many dogs are there?"])
def test_other_questions_are_unreadable(question: str) -> None:
    assert GRAMMAR.truth(SCENE, question).premise is Premise.UNREADABLE


@pytest.mark.parametrize(("answer", "claims"), [
    ("There is a dog at the top left.", Claims(1, 0, 0, 1, 0)),
    ("There is a dog at the center.", Claims(1, 1, 0, 1, 0)),  # there, but elsewhere
    ("There is a pear at the top left.", Claims(1, 1, 0, 1, 1)),
    ("Yes, there is a pear.", Claims(1, 1, 0, 1, 1)),
    ("No, there is no dog.", Claims(1, 1, 0, 0, 0)),
    ("The animal is a cat.", Claims(1, 0, 0, 1, 0)),
    ("The vehicle is a cat.", Claims(1, 1, 0, 1, 0)),
    ("The object at the center is a vehicle.", Claims(1, 0, 0, 0, 0)),  # a kind names no object
    ("There are 3 animals.", Claims(1, 1, 0, 0, 0)),
    ("There is a unicorn.", Claims(num_unreadable=1)),
])  # fmt: skip
def test_a_statement_is_held_against_the_scene(answer: str, claims: Claims) -> None:
    assert WORLD.claims.read(SCENE, "What is there?", answer) == claims


def test_all_that_is_asked_has_a_right_answer_that_states_nothing_wrong() -> None:
    kinds = set()
    for index in range(400):
        scene, rng = scene_of(image_id("noto", 9, index), THINGS), np.random.default_rng(index)
        for question_type in QuestionType:
            question = GRAMMAR.ask(scene, question_type, rng, false_premise=index % 4 == 0)
            right = GRAMMAR.truth(scene, question)
            found = WORLD.claims.read(scene, question, right.answer)
            assert found.num_statements > 0
            assert (found.num_contradicted, found.num_unreadable, found.num_objects_not_there) == (0, 0, 0), (question, right.answer)
            kinds.add((right.kind, right.premise))
    assert {kind for kind, premise in kinds if premise is Premise.TRUE} == {kind.name for kind in GRAMMAR.kinds}


def test_the_world_is_an_oracle_of_answers_and_objects() -> None:
    identifier = SOURCE.image_ids()[0]
    scene = SOURCE.scene(identifier)
    absent = next(name for name in THINGS.names if name not in {thing.name for thing in scene.things})
    assert isinstance(SOURCE, Oracle)
    assert isinstance(SOURCE, ObjectOracle)
    assert SOURCE.is_correct(identifier, "Describe the image in detail.", description(scene))
    assert SOURCE.names_absent_object(identifier, "What is there?", f"There is a {absent}.")
    assert not SOURCE.names_absent_object(identifier, "What is there?", description(scene))
    for one in SOURCE.questions(90, seed=4):
        assert GRAMMAR.truth(SOURCE.scene(one.image_id), one.question).answer == one.answer


def test_drills_tell_what_is_where_and_where_what_is() -> None:
    assert WORLD.cells(SCENE)[1].startswith("top left dog, top center empty, top right empty, middle left empty, center fire engine, ")
    answers = " ".join(WORLD.find(SCENE, np.random.default_rng(seed))[1] for seed in range(60))
    assert all(one in answers for one in ("dog top left", "animal 2", "animals 2", "vehicle fire engine center", "vehicles 1", "none"))


def test_a_description_reads_back_and_an_answer_has_to_follow_from_it() -> None:
    for index in range(100):
        scene = scene_of(image_id("noto", 8, index), THINGS)
        read = described_scene(description(scene), THINGS)
        assert read is not None
        assert read.things == scene.things
    assert described_scene("There is a dog at the center. There is a cat at the center.", THINGS) is None
    seen, answers = description(SCENE), ("The cat is at the bottom center.", "The cat is at the center.")
    records = [make_record(question="Where is the cat?", answer=answer, view_description=seen) for answer in answers]
    records.append(make_record(question="Where is the pear?", answer="The pear is at the center.", view_description=seen))
    assert FollowsFromDescription().judge(records) == [None, Reason.ANSWERS_DISAGREE, Reason.NO_BASIS]


def test_the_exact_teacher_writes_the_truth() -> None:
    view = text_view(SOURCE, SOURCE.image_ids()[0])
    scene = SOURCE.scene(view.image_id)
    assert view.captions[-1] == description(scene)
    tasks = [teaching_task(view, kind, 1, ("Describe the image in detail.",)) for kind in QuestionType]
    conversation, detail, reasoning = (reply.text for reply in ExactTeacher(SOURCE).write(tasks))
    assert detail == description(scene)
    for said in (*conversation.split("\n===\n"), reasoning.replace("\n===\n", "\n")):
        question, answer = said.removeprefix("Question: ").split("\nAnswer: ")
        assert GRAMMAR.is_correct(scene, question, answer)
