"""What an answer states, held against the truth."""

from __future__ import annotations

import numpy as np
import pytest

from loop.sources.shapes.claims import Claims, claims_of
from loop.sources.shapes.questions import _KINDS, Premise, ask, description, truth
from loop.sources.shapes.scene import Scene, Thing, image_id, scene_of

SCENE = Scene("pictured", 0.0, (Thing(0, "ring", "red", "small"), Thing(4, "star", "blue", "large"), Thing(8, "star", "red", "large")), 0)
LEFT = "Is the red ring to the left of the blue star?"


@pytest.mark.parametrize(
    ("answer", "claims"),
    [
        ("There is a small red ring at the top left.", Claims(1, 0, 0, 1, 0)),
        ("There is a large red ring at the top left.", Claims(1, 1, 0, 1, 0)),  # there, but of another size
        ("There is a small red ring at the center.", Claims(1, 1, 0, 1, 0)),
        ("There is a small green ring at the top left.", Claims(1, 1, 0, 1, 1)),
        ("A large blue star is at the center.", Claims(1, 0, 0, 1, 0)),
        ("Yes, there is a red star.", Claims(1, 0, 0, 1, 0)),
        ("Yes, there is an orange star.", Claims(1, 1, 0, 1, 1)),
        ("No, there is no orange star.", Claims(1, 0, 0, 0, 0)),
        ("No, there is no red star.", Claims(1, 1, 0, 0, 0)),
        ("There is no red object.", Claims(1, 1, 0, 0, 0)),
        ("There is more than one star.", Claims(1, 0, 0, 1, 0)),
        ("There is more than one ring.", Claims(1, 1, 0, 1, 0)),
        ("There is nothing at the top right.", Claims(1, 0, 0, 0, 0)),
        ("There is nothing at the center.", Claims(1, 1, 0, 0, 0)),
        ("The ring is red.", Claims(1, 0, 0, 1, 0)),
        ("The ring is blue.", Claims(1, 1, 0, 1, 1)),
        ("The blue object is a star.", Claims(1, 0, 0, 1, 0)),
        ("The blue star is small.", Claims(1, 1, 0, 1, 0)),
        ("The blue star is at the center.", Claims(1, 0, 0, 1, 0)),
        ("There are 3 objects.", Claims(1, 0, 0, 0, 0)),
        ("There are 2 red objects.", Claims(1, 0, 0, 0, 0)),
        ("There is 1 large object.", Claims(1, 1, 0, 0, 0)),
        ("There are no green objects.", Claims(1, 0, 0, 0, 0)),
        ("The dog is asleep.", Claims(num_unreadable=1)),
        ("There is a small red ring at the", Claims(num_unreadable=1)),
        ("", Claims()),
    ],
)
def test_a_statement_is_held_against_the_scene(answer: str, claims: Claims) -> None:
    assert claims_of(SCENE, "What is there?", answer) == claims


def test_a_conclusion_is_held_against_the_truth_about_the_question() -> None:
    places = "The red ring is at the top left. The blue star is at the center."
    assert claims_of(SCENE, LEFT, f"{places} So yes.") == Claims(3, 0, 0, 2, 0)
    assert claims_of(SCENE, LEFT, f"{places} So no.") == Claims(3, 1, 0, 2, 0)
    assert claims_of(SCENE, "Is the red ring above the green star?", "So yes.") == Claims(1, 1)
    assert claims_of(SCENE, "How many objects are there?", "So yes.") == Claims(num_unreadable=1)


def test_a_wrong_statement_spoils_no_other() -> None:
    answer = f"{description(SCENE)} There is a large green cross at the top center. The end."
    assert claims_of(SCENE, "Describe the image in detail.", answer) == Claims(4, 1, 1, 4, 1)


def test_no_right_answer_states_anything_wrong_and_every_kind_is_read() -> None:
    kinds = set()
    for index in range(600):
        scene, rng = scene_of(image_id(9, index, 0.3)), np.random.default_rng(index)
        for question_type in ("conversation", "detail", "complex"):
            question = ask(scene, question_type, rng, false_premise=index % 4 == 0)
            right = truth(scene, question)
            found = claims_of(scene, question, right.answer)
            assert found.num_statements > 0
            assert (found.num_contradicted, found.num_unreadable, found.num_objects_not_there) == (0, 0, 0), (question, right.answer)
            kinds.add((right.kind, right.premise))
    assert {kind for kind, premise in kinds if premise is Premise.TRUE} == {kind.name for kind in _KINDS}


def test_the_answer_about_another_scene_is_caught() -> None:
    caught = Claims()
    for index in range(100):
        scene, other = scene_of(image_id(9, index, 0.3)), scene_of(image_id(10, index, 0.3))
        caught += claims_of(scene, "Describe the image in detail.", description(other))
    assert caught.num_contradicted > 0.95 * caught.num_statements
    assert caught.num_objects == caught.num_statements
    assert 0.7 * caught.num_objects < caught.num_objects_not_there <= caught.num_contradicted
