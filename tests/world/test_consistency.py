"""The filter that holds an answer against the model's own description of the image."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loop.sources.shapes.consistency import FollowsFromDescription, described_scene
from loop.sources.shapes.questions import description
from loop.sources.shapes.scene import Thing, image_id, scene_of
from policies.correction.methods import CORRECTION_POLICIES
from policies.filtering.chain import FilterChain, MissingMeasurementError, check_measurements
from policies.filtering.filters import FILTER_POLICIES
from policies.records import Reason, Record
from tests.policies.make import make_record

NAME = "loop.sources.shapes.consistency:FollowsFromDescription"
SEEN = "There is a small red ring at the top left. There is a large blue star at the center."


def judged(question: str, answer: str, seen: str = SEEN) -> Reason | None:
    (verdict,) = FollowsFromDescription().judge([make_record(question=question, answer=answer, view_description=seen)])
    return verdict


def test_a_description_reads_back_as_the_scene_it_was_written_of() -> None:
    for index in range(400):
        scene = scene_of(image_id(8, index, 0.5))
        read = described_scene(description(scene))
        assert read is not None
        assert read.things == scene.things


def test_the_order_of_a_description_does_not_matter() -> None:
    swapped = "There is a large blue star at the center. There is a small red ring at the top left."
    read, other = described_scene(swapped), described_scene(SEEN)
    assert read is not None
    assert read.things == (Thing(0, "ring", "red", "small"), Thing(4, "star", "blue", "large"))
    assert read == other


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "A ring.",
        "There is a small red ring at the top left. And a cat.",
        "There is a small red ring at the top left. There is a large blue star at the top left.",  # two in one cell
        "There is a small red ring at the top left. There is a large blue star at the",  # cut off
        "There is a red ring at the top left.",
        "There is a small red ball at the top left.",
    ],
)
def test_a_text_that_describes_no_possible_scene_is_none(text: str) -> None:
    assert described_scene(text) is None


def test_an_answer_that_follows_is_kept() -> None:
    assert judged("What color is the ring?", "The ring is red.") is None
    assert judged("How many objects are there?", "There are 2 objects.") is None


def test_an_answer_that_contradicts_the_description_is_rejected() -> None:
    assert judged("What color is the ring?", "The ring is blue.") is Reason.ANSWERS_DISAGREE


def test_a_question_that_the_description_does_not_support_has_no_basis() -> None:
    assert judged("What color is the cross?", "There is no cross.") is Reason.NO_BASIS
    assert judged("What color is the dog?", "The dog is red.") is Reason.NO_BASIS


def test_a_record_without_a_readable_description_is_rejected() -> None:
    assert judged("What color is the ring?", "The ring is red.", seen="") is Reason.ANSWERS_DISAGREE
    assert judged("What color is the ring?", "The ring is red.", seen="A ring and a star.") is Reason.ANSWERS_DISAGREE


def test_the_truth_of_the_image_plays_no_part() -> None:
    """The same record is judged the same whatever the image shows: only what the model says counts."""
    records = [make_record(image_id=one, question="What color is the ring?", answer="The ring is red.", view_description=SEEN)
               for one in ("shapes-7-000042-0310", "shapes-1-000000-0000", "no image at all")]  # fmt: skip
    assert FollowsFromDescription().judge(records) == [None, None, None]
    audited = [replace(record, answer_correct=False, original_correct=False) for record in records]
    assert FollowsFromDescription().judge(audited) == [None, None, None]


def test_it_is_named_in_a_config_and_works_in_a_chain() -> None:
    chain = FilterChain([FILTER_POLICIES.build("parsable"), FILTER_POLICIES.build(NAME)])
    records: list[Record] = [
        make_record(0, question="What color is the ring?", answer="The ring is red.", view_description=SEEN),
        make_record(1, question="What color is the ring?", answer="The ring is pink.", view_description=SEEN),
    ]
    result = chain.apply(records)
    assert [record.accepted for record in result.records] == [True, False]
    assert [tuple(count) for count in result.counts] == [("parsable", 2, 2), ("follows_from_description", 2, 1)]


def test_it_needs_a_description() -> None:
    policy = FollowsFromDescription()
    check_measurements([policy], CORRECTION_POLICIES.build("sentence_by_sentence"))
    with pytest.raises(MissingMeasurementError, match="follows_from_description' needs correction option describe: true"):
        check_measurements([policy], CORRECTION_POLICIES.build("sentence_by_sentence", {"describe": False}))
