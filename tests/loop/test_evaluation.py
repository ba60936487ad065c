"""What the acceptance policy is told of a model: its answers to the acceptance sets, and which of them hallucinate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from loop.assembly import HeldOut, build_held_out, check_held_out
from loop.config import AcceptanceSet, HeldOutSet
from loop.errors import UserError
from loop.sets import LlavaJsonSet
from loop.sources.shapes.questions import truth
from loop.sources.shapes.scene import COLORS, SHAPES, scene_of
from loop.sources.shapes.source import ShapesImages
from loop.stages.evaluation import answered
from policies.records import HeldOutQuestion, Prediction


def predictions(answers: Sequence[str]) -> list[Prediction]:
    return [Prediction(str(index), answer, index % 2 == 0, "v1") for index, answer in enumerate(answers)]


def test_hallucinations_are_told_by_the_world_that_knows_its_objects() -> None:
    world = ShapesImages(3, 0.0, 0.1, 4)
    image_id = world.image_ids()[0]
    things = {(thing.color, thing.shape) for thing in scene_of(image_id).things}
    color, shape = next((color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in things)
    asked = f"Is there a {color} {shape}?"
    right = truth(scene_of(image_id), asked).answer
    questions = tuple(HeldOutQuestion(str(index), image_id, asked, right) for index in range(3))
    one = HeldOut("far", world, questions)
    found = answered([one], {"acceptance/far": predictions([f"Yes, there is a {color} {shape}.", right, "Hm."]), "held_out/x": []})
    assert found.hallucinated == {"acceptance/far": [True, False, False]}
    assert found.correct == {"acceptance/far": [True, False, True]}
    assert found.mean_words == pytest.approx((6 + len(right.split()) + 1) / 3)
    assert found.yes_share == {}


@pytest.fixture
def polled(tmp_path: Path) -> LlavaJsonSet:
    """Yes-or-no questions about one photo, the last one answered otherwise."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    texts = [("Is there a cat?", "Yes"), ("Is there a dog?", "No"), ("Is there a cow?", "no, there is none"), ("What is it?", "A cat.")]
    entries = [
        {"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": f"<image>\n{q}"}, {"from": "gpt", "value": a}]}
        for q, a in texts
    ]
    for name, chosen in (("polled.json", entries[:3]), ("mixed.json", entries)):
        (tmp_path / name).write_text(json.dumps(chosen))
    return LlavaJsonSet(kind="llava_json", path=str(tmp_path / "polled.json"), images=str(tmp_path))


def test_in_a_yes_or_no_set_a_yes_where_no_is_right_is_a_hallucination(polled: LlavaJsonSet) -> None:
    (one,) = build_held_out({"pope": AcceptanceSet(data=polled, num_questions=3, yes_no=True)}, seed=1)
    check_held_out([one])
    assert all(question.yes_no for question in one.questions)
    right = [question.answer for question in one.questions]
    found = answered([one], {"acceptance/pope": predictions(["Yes."] * 3)})
    assert found.hallucinated == {"acceptance/pope": [None if answer == "Yes" else True for answer in right]}
    assert found.yes_share == {"acceptance/pope": 1.0}
    assert answered([one], {"acceptance/pope": predictions(["No."] * 3)}).yes_share == {"acceptance/pope": 0.0}


def test_without_a_truth_nothing_is_called_a_hallucination(polled: LlavaJsonSet) -> None:
    (one,) = build_held_out({"photos": AcceptanceSet(data=polled, num_questions=3)}, seed=1)
    assert answered([one], {"acceptance/photos": predictions(["Yes."] * 3)}).hallucinated == {}


def test_a_yes_or_no_set_with_another_answer_is_refused(polled: LlavaJsonSet) -> None:
    mixed = polled.model_copy(update={"path": polled.path.replace("polled.json", "mixed.json")})
    sets = build_held_out({"pope": AcceptanceSet(data=mixed, yes_no=True)}, seed=1)
    with pytest.raises(UserError, match=r"the right answer to question 1#3 of the set pope is 'A cat\.'; with yes_no true every answer"):
        check_held_out(sets)


def test_a_held_out_set_has_no_flags(polled: LlavaJsonSet) -> None:
    (one,) = build_held_out({"test": HeldOutSet(data=polled)}, seed=1)
    assert (one.seed_domain, one.yes_no) == (False, False)
    assert not any(question.yes_no for question in one.questions)
