"""Every question of the grammar is answered right, on scenes made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from loop.sources.shapes.drills import cells
from loop.sources.shapes.questions import _KINDS, DETAIL_QUESTIONS, Premise, Truth, ask, description, is_correct, truth
from loop.sources.shapes.scene import Scene, Thing, image_id, scene_of
from policies.generation.instructions import QuestionType

# A red ring top left, an orange star in the center, two squares: a green one right of the center, a red one at the bottom.
SCENE = Scene(
    "by hand",
    0.0,
    (
        Thing(0, "ring", "red", "small"),
        Thing(4, "star", "orange", "large"),
        Thing(5, "square", "green", "large"),
        Thing(7, "square", "red", "large"),
    ),
    0,
)
ALONE = Scene("alone", 0.0, (Thing(2, "cross", "cyan", "small"),), 0)

TRUE = [
    ("color", "What color is the ring?", "The ring is red."),
    ("color", "What color is the star?", "The star is orange."),
    ("shape", "What shape is the orange object?", "The orange object is a star."),
    ("shape", "What shape is the green object?", "The green object is a square."),
    ("size", "How large is the red ring?", "The red ring is small."),
    ("size", "How large is the red square?", "The red square is large."),
    ("where", "Where is the red ring?", "The red ring is at the top left."),
    ("where", "Where is the orange star?", "The orange star is at the center."),
    ("count", "How many objects are there?", "There are 4 objects."),
    ("count_color", "How many red objects are there?", "There are 2 red objects."),
    ("count_color", "How many green objects are there?", "There is 1 green object."),
    ("count_color", "How many pink objects are there?", "There are no pink objects."),
    ("exists", "Is there a red ring?", "Yes, there is a red ring."),
    ("exists", "Is there an orange star?", "Yes, there is an orange star."),
    ("exists", "Is there an orange ring?", "No, there is no orange ring."),
    ("exists", "Is there a cyan cross?", "No, there is no cyan cross."),
    ("at", "What is at the center?", "A large orange star is at the center."),
    ("at", "What is at the top left?", "A small red ring is at the top left."),
    *(("detail", question, description(SCENE)) for question in DETAIL_QUESTIONS),
    (
        "left",
        "Is the red ring to the left of the orange star?",
        "The red ring is at the top left. The orange star is at the center. So yes.",
    ),
    (
        "left",
        "Is the orange star to the left of the red square?",  # same column
        "The orange star is at the center. The red square is at the bottom center. So no.",
    ),
    (
        "left",
        "Is the green square to the left of the orange star?",
        "The green square is at the middle right. The orange star is at the center. So no.",
    ),
    (
        "above",
        "Is the orange star above the red square?",
        "The orange star is at the center. The red square is at the bottom center. So yes.",
    ),
    (
        "above",
        "Is the orange star above the green square?",  # same row
        "The orange star is at the center. The green square is at the middle right. So no.",
    ),
    (
        "above",
        "Is the red square above the red ring?",
        "The red square is at the bottom center. The red ring is at the top left. So no.",
    ),
    (
        "same_size",
        "Do the orange star and the red square have the same size?",
        "The orange star is large. The red square is large. So yes.",
    ),
    ("same_size", "Do the red ring and the red square have the same size?", "The red ring is small. The red square is large. So no."),
    ("same_color", "Do the ring and the star have the same color?", "The ring is red. The star is orange. So no."),
    ("more", "Are there more large objects than small objects?", "There are 3 large objects. There is 1 small object. So yes."),
    ("more", "Are there more small objects than large objects?", "There is 1 small object. There are 3 large objects. So no."),
]

FALSE = [
    ("color", "What color is the cross?", "There is no cross."),
    ("color", "What color is the square?", "There is more than one square."),
    ("shape", "What shape is the pink object?", "There is no pink object."),
    ("shape", "What shape is the red object?", "There is more than one red object."),
    ("size", "How large is the green ring?", "There is no green ring."),
    ("where", "Where is the orange ring?", "There is no orange ring."),
    ("at", "What is at the top right?", "There is nothing at the top right."),
    ("left", "Is the blue ring to the left of the orange star?", "There is no blue ring."),
    ("left", "Is the red ring to the left of the blue star?", "There is no blue star."),
    ("above", "Is the red star above the red ring?", "There is no red star."),
    ("same_size", "Do the red ring and the pink ring have the same size?", "There is no pink ring."),
    ("same_color", "Do the ring and the square have the same color?", "There is more than one square."),
    ("same_color", "Do the triangle and the ring have the same color?", "There is no triangle."),
]

UNREADABLE = [
    "",
    "What color is the ball?",
    "what color is the ring?",
    "What color is the ring",
    "What color is the ring? ",
    "What color is the ring? What color is the star?",
    "Where is the ring?",
    "Is there a ring?",
    "Is the red ring to the right of the orange star?",
    "What is at the middle center?",
]


@pytest.mark.parametrize(("kind", "question", "answer"), TRUE)
def test_a_question_with_a_basis_is_answered(kind: str, question: str, answer: str) -> None:
    assert truth(SCENE, question) == Truth(Premise.TRUE, answer, kind)


@pytest.mark.parametrize(("kind", "question", "answer"), FALSE)
def test_a_question_without_a_basis_is_told_so(kind: str, question: str, answer: str) -> None:
    assert truth(SCENE, question) == Truth(Premise.FALSE, answer, kind)


@pytest.mark.parametrize("question", UNREADABLE)
def test_what_is_no_question_of_the_grammar_is_unreadable(question: str) -> None:
    assert truth(SCENE, question) == Truth(Premise.UNREADABLE, "")


def test_every_kind_of_question_is_in_the_tables() -> None:
    assert len(_KINDS) == 14
    assert {kind for kind, _, _ in TRUE} == {kind.name for kind in _KINDS}
    always_answered = {"count", "count_color", "exists", "detail", "more"}
    assert {kind for kind, _, _ in FALSE} == {kind.name for kind in _KINDS} - always_answered


def test_the_color_of_two_things_that_share_one_is_the_same() -> None:
    scene = Scene("pair", 0.0, (Thing(1, "star", "blue", "small"), Thing(2, "ring", "blue", "large")), 0)
    assert truth(scene, "Do the star and the ring have the same color?").answer == "The star is blue. The ring is blue. So yes."
    assert truth(scene, "Are there more small objects than large objects?").answer == (
        "There is 1 small object. There is 1 large object. So no."
    )


def test_a_scene_of_one_thing_is_counted_in_the_singular() -> None:
    assert truth(ALONE, "How many objects are there?").answer == "There is 1 object."
    assert truth(ALONE, "Describe the image in detail.").answer == "There is a small cyan cross at the top right."
    assert truth(ALONE, "Are there more large objects than small objects?").answer == (
        "There are no large objects. There is 1 small object. So no."
    )


def test_an_answer_is_correct_when_it_is_exactly_right_up_to_white_space() -> None:
    question, answer = "What color is the ring?", "The ring is red."
    assert is_correct(SCENE, question, answer)
    assert is_correct(SCENE, question, "  The ring\nis  red. ")
    assert not is_correct(SCENE, question, "The ring is red")
    assert not is_correct(SCENE, question, "The ring is blue.")
    assert not is_correct(SCENE, question, "")


@pytest.mark.parametrize(("kind", "question", "answer"), FALSE)
def test_no_answer_to_a_false_premise_is_correct(kind: str, question: str, answer: str) -> None:
    assert not is_correct(SCENE, question, answer)
    assert not is_correct(SCENE, "Is this a question?", "")


GOLDEN = [
    ("conversation", False, "What shape is the red object?", "The red object is a cross."),
    ("conversation", True, "Where is the cyan cross?", "There is no cyan cross."),
    ("detail", False, "Which objects are in the image and where are they?", ""),
    ("detail", True, "What can be seen in the image?", ""),
    ("complex", False, "Are there more large objects than small objects?", "There are 3 large objects. There is 1 small object. So yes."),
    ("complex", True, "Is the cyan cross above the purple ring?", "There is no cyan cross."),
]
"""Drawn one after the other from one generator. A change here makes other data: the shipped model was trained on these."""


def test_questions_are_drawn_the_same_everywhere() -> None:
    scene, rng = scene_of("shapes-7-000042-0310"), np.random.default_rng(5)
    for question_type, false_premise, question, answer in GOLDEN:
        assert ask(scene, question_type, rng, false_premise=false_premise) == question
        assert truth(scene, question).answer == (answer or description(scene))


@pytest.mark.parametrize("question_type", list(QuestionType))
def test_a_true_premise_is_asked_for_and_given(question_type: QuestionType) -> None:
    for index in range(300):
        scene, rng = scene_of(image_id(3, index, 0.2)), np.random.default_rng(index)
        assert truth(scene, ask(scene, question_type, rng)).premise is Premise.TRUE


@pytest.mark.parametrize("question_type", [QuestionType.CONVERSATION, QuestionType.COMPLEX])
def test_a_false_premise_is_asked_for_and_given(question_type: QuestionType) -> None:
    for index in range(300):
        scene, rng = scene_of(image_id(4, index, 0.2)), np.random.default_rng(index)
        assert truth(scene, ask(scene, question_type, rng, false_premise=True)).premise is Premise.FALSE


def test_a_description_cannot_be_asked_for_without_a_basis() -> None:
    for index in range(50):
        question = ask(SCENE, "detail", np.random.default_rng(index), false_premise=True)
        assert question in DETAIL_QUESTIONS
        assert truth(SCENE, question).premise is Premise.TRUE


def test_every_kind_is_drawn() -> None:
    asked: dict[str, set[str]] = {str(question_type): set() for question_type in QuestionType}
    for index in range(400):
        scene, rng = scene_of(image_id(6, index, 0.2)), np.random.default_rng(index)
        for question_type, kinds in asked.items():
            kinds.add(truth(scene, ask(scene, question_type, rng)).kind)
    assert asked == {str(one): {kind.name for kind in _KINDS if kind.type == one} for one in QuestionType}


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown question type 'essay'; expected one of \['complex', 'conversation', 'detail'\]"):
        ask(SCENE, "essay", np.random.default_rng(0))


def test_a_drill_names_every_cell_in_reading_order() -> None:
    prompt, answer = cells(SCENE)
    assert prompt == "List every cell of the image."
    assert answer == (
        "top left small red ring, top center empty, top right empty, middle left empty, center large orange star, "
        "middle right large green square, bottom left empty, bottom center large red square, bottom right empty."
    )
