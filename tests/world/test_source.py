"""The world as images, labelled data and oracle."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from actors.images import BadImageError, Oracle
from loop.sources.shapes.questions import Premise, is_correct, truth
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import scene_of
from loop.sources.shapes.source import ShapesImages
from policies.generation.instructions import TRAINING_INSTRUCTIONS, QuestionType, parse_vig

SOURCE = ShapesImages(seed=3, min_shift=0.1, max_shift=0.4, num_images=60)


def test_ids_are_unique_in_the_range_of_shifts_and_always_the_same() -> None:
    ids = SOURCE.image_ids()
    assert ids == SOURCE.image_ids() == pickle.loads(pickle.dumps(SOURCE)).image_ids()
    assert len(set(ids)) == 60
    shifts = [scene_of(one).shift for one in ids]
    assert min(shifts) >= 0.1
    assert max(shifts) <= 0.4
    assert max(shifts) - min(shifts) > 0.2
    assert ids[:2] == ["shapes-3-000000-0176", "shapes-3-000001-0222"]


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    assert ShapesImages(3, 0.1, 0.4, 20).image_ids() == SOURCE.image_ids()[:20]


def test_an_image_is_opened_by_its_id() -> None:
    image_id = SOURCE.image_ids()[0]
    assert SOURCE.open(image_id).tobytes() == render(scene_of(image_id)).tobytes()


def test_an_id_of_another_world_of_pictures_is_a_bad_image() -> None:
    with pytest.raises(BadImageError, match=r"'photo\.jpg' is not an image of the shapes world"):
        SOURCE.open("photo.jpg")


def test_the_world_is_an_oracle() -> None:
    image_id = "shapes-7-000042-0310"
    assert isinstance(SOURCE, Oracle)
    assert SOURCE.is_correct(image_id, "What color is the cross?", "The cross is red.")
    assert not SOURCE.is_correct(image_id, "What color is the cross?", "The cross is blue.")
    assert not SOURCE.is_correct(image_id, "What color is the star?", "There is no star.")


def test_every_held_out_question_is_answered_by_the_truth() -> None:
    questions = SOURCE.questions(150, seed=4)
    assert len({question.question_id for question in questions}) == 150
    assert Counter(question.question_type for question in questions) == {str(one): 50 for one in QuestionType}
    premises = Counter()
    for one in questions:
        right = truth(scene_of(one.image_id), one.question)
        assert right.premise is not Premise.UNREADABLE
        assert right.answer == one.answer
        premises[right.premise] += 1
    assert 3 <= premises[Premise.FALSE] <= 30


def test_held_out_questions_take_every_image_before_one_comes_again() -> None:
    image_ids = [question.image_id for question in SOURCE.questions(120, seed=4)]
    assert image_ids == SOURCE.image_ids() * 2


def test_every_training_sample_is_answered_by_the_truth() -> None:
    samples = SOURCE.training_samples(300, seed=4)
    num_vig = 0
    for sample in samples:
        ((user, assistant),) = sample.turns
        scene = scene_of(sample.image_id)
        assert sample.origin == "seed"
        pair = parse_vig(assistant)
        if pair is None:
            right = truth(scene, user)
            assert right.premise is not Premise.UNREADABLE
            assert assistant == right.answer
        else:
            num_vig += 1
            assert user in TRAINING_INSTRUCTIONS[QuestionType(sample.question_type)]
            assert is_correct(scene, pair.question, pair.answer)  # VIG is never taught to ask without a basis
    assert 0.2 < num_vig / 300 < 0.6
    assert Counter(Counter(sample.image_id for sample in samples).values()) == {5: 60}


def test_samples_and_questions_depend_on_the_seed_alone() -> None:
    assert SOURCE.training_samples(40, 1) == SOURCE.training_samples(40, 1)
    assert SOURCE.questions(40, 1) == SOURCE.questions(40, 1)
    assert SOURCE.training_samples(40, 1) != SOURCE.training_samples(40, 2)
    assert SOURCE.questions(40, 1) != SOURCE.questions(40, 2)


GOLDEN_QUESTIONS = [
    ("shapes-3-000000-0176-0", "Where is the pink cross?", "There is more than one pink cross."),
    ("shapes-3-000001-0222-1", "Give a detailed description of the image.", "There is a large pink square at the bottom right."),
    (
        "shapes-3-000002-0202-2",
        "Is the red ring above the purple cross?",
        "The red ring is at the middle left. The purple cross is at the bottom center. So yes.",
    ),
    ("shapes-3-000003-0228-3", "How large is the purple triangle?", "The purple triangle is large."),
]


def test_held_out_questions_are_drawn_the_same_everywhere() -> None:
    """Published numbers rest on them."""
    assert [(one.question_id, one.question, one.answer) for one in SOURCE.questions(4, seed=0)] == GOLDEN_QUESTIONS
