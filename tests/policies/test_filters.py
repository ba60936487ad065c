from __future__ import annotations

from collections.abc import Sequence

import pytest

from policies.correction.methods import CORRECTION_POLICIES
from policies.filtering.chain import FilterChain, MissingMeasurementError, StageCount, check_measurements
from policies.filtering.filters import FILTER_POLICIES
from policies.records import Reason, Record
from policies.registry import UnknownPolicyError
from tests.policies.make import make_record


def verdict(name: str, record: Record, **options: object) -> Reason | None:
    (reason,) = FILTER_POLICIES.build(name, options).judge([record])
    return reason


class NoRings:
    """A user's policy."""

    name = "no_rings"

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        return [Reason.USER_POLICY if "ring" in record.question else None for record in records]


class Lazy:
    name = "lazy"

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        return []


@pytest.mark.parametrize("name", FILTER_POLICIES.names())
def test_every_filter_keeps_a_good_record(name: str) -> None:
    assert verdict(name, make_record()) is None


def test_a_chain_counts_and_keeps_the_first_reason() -> None:
    records = [
        make_record(0),
        make_record(1, generated_text="nothing", answer_logprob=-90.0),
        make_record(2, answer_logprob=-90.0, view_answers=("No.", "No.")),
        make_record(3, reasons=(Reason.UNREADABLE_IMAGE,), accepted=True),
    ]
    result = FilterChain([FILTER_POLICIES.build(name) for name in ("parsable", "confidence", "agreement")]).apply(records)
    assert [record.record_id for record in result.records] == [record.record_id for record in records]
    assert [record.accepted for record in result.records] == [True, False, False, False]
    assert [record.reasons for record in result.records] == [(), ("unparsable",), ("low_confidence",), ("unreadable_image",)]
    assert result.counts == [StageCount("parsable", 3, 2), StageCount("confidence", 2, 1), StageCount("agreement", 1, 1)]


def test_an_empty_chain_accepts_and_an_empty_shard_is_fine() -> None:
    assert FilterChain([]).apply([make_record()]).records[0].accepted
    assert FilterChain([FILTER_POLICIES.build("duplicates")]).apply([]).counts == [("duplicates", 0, 0)]


def test_a_policy_of_the_users_own_takes_part() -> None:
    policy = FILTER_POLICIES.build(f"{__name__}:NoRings")
    (record,) = FilterChain([policy]).apply([make_record()]).records
    assert record.reasons == (Reason.USER_POLICY,)


def test_a_policy_with_too_few_verdicts_is_named() -> None:
    with pytest.raises(ValueError, match="'lazy' gave 0 verdicts on 1 records"):
        FilterChain([Lazy()]).apply([make_record()])


@pytest.mark.parametrize("changes", [{"question": ""}, {"generated_text": "Question: a"}])
def test_parsable_wants_a_question_and_an_answer(changes: dict) -> None:
    assert verdict("parsable", make_record(**changes)) is Reason.UNPARSABLE


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"question": " "}, {}, Reason.EMPTY),
        ({"answer": ""}, {}, Reason.EMPTY),
        ({"question": "Why so?"}, {}, Reason.TOO_SHORT),
        ({"question": "Why so?"}, {"min_question_words": 2}, None),
        ({"answer": "Red."}, {"min_answer_words": 2}, Reason.TOO_SHORT),
        ({"answer": "red " * 11}, {"max_answer_words": 10}, Reason.TOO_LONG),
        ({"question": "why " * 61}, {}, Reason.TOO_LONG),
    ],
)
def test_length_is_counted_in_words(changes: dict, options: dict, reason: Reason | None) -> None:
    assert verdict("length", make_record(**changes), **options) is reason


def test_a_refuted_premise_is_rejected_before_its_missing_answer_is() -> None:
    refuted = make_record(refuted_premises=("red ring",), answer="", sentences=())
    assert verdict("premise", refuted) is Reason.FALSE_PREMISE
    result = FilterChain([FILTER_POLICIES.build("premise"), FILTER_POLICIES.build("length")]).apply([make_record(), refuted])
    assert [record.reasons for record in result.records] == [(), (Reason.FALSE_PREMISE,)]
    assert result.counts == [StageCount("premise", 2, 1), StageCount("length", 1, 1)]
    assert verdict("premise", make_record(question="", refuted_premises=None)) is Reason.EMPTY


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"sentence_gains": (-0.5, 0.4)}, {}, Reason.UNGROUNDED),
        ({"sentence_gains": (-0.5, 0.6)}, {}, None),
        ({"sentence_gains": (1.0, 1.2)}, {"min_mean_gain": 1.2}, Reason.UNGROUNDED),
        ({"num_dropped_sentences": 1}, {}, Reason.UNGROUNDED),
        ({"num_dropped_sentences": 1}, {"max_dropped_sentences": 1}, None),
        ({"question_type": "okvqa", "sentence_gains": ()}, {}, None),
        ({"answer": ""}, {}, Reason.EMPTY),
    ],
)
def test_grounding_wants_whole_answers_that_the_image_supports(changes: dict, options: dict, reason: Reason | None) -> None:
    assert verdict("grounding", make_record(**changes), **options) is reason


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"short_answer_weights": (49.0, 2.0)}, {}, Reason.LOW_CONFIDENCE),
        ({"short_answer_weights": (51.0, 2.0)}, {}, None),
        ({"short_answer_weights": (51.0,)}, {"min_weight": 60}, Reason.LOW_CONFIDENCE),
        ({"question_type": "detail"}, {}, None),
        ({"answer": ""}, {}, Reason.EMPTY),
    ],
)
def test_the_heaviest_short_answer_has_a_least_weight(changes: dict, options: dict, reason: Reason | None) -> None:
    record = make_record(**{"question_type": "okvqa", "short_answers": ("red", "blue"), **changes})
    assert verdict("short_answer", record, **options) is reason


def test_the_first_of_equal_questions_about_an_image_is_kept() -> None:
    same = [
        make_record(0, image_id="a"),
        make_record(1, image_id="a", question="what is  beside the RED ring", answer="A star."),
        make_record(2, image_id="b"),
    ]
    assert FILTER_POLICIES.build("duplicates").judge(same) == [None, Reason.EXACT_DUPLICATE, None]
    assert FILTER_POLICIES.build("duplicates", {"scope": "shard"}).judge(same) == [None, Reason.EXACT_DUPLICATE, Reason.EXACT_DUPLICATE]


def test_almost_equal_records_are_near_duplicates() -> None:
    answer = " ".join(f"word{index}" for index in range(60))
    records = [
        make_record(0, image_id="a", question="What is in the picture?", answer=answer),
        make_record(1, image_id="a", question="What is in the picture?", answer="Something else."),
        make_record(2, image_id="a", question="What's in the picture?", answer=answer),
        make_record(3, image_id="b", question="What's in the picture?", answer=answer),
        make_record(4, image_id="a", question="Where?", answer=answer[:200]),
    ]
    assert FILTER_POLICIES.build("duplicates").judge(records) == [None, Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE, None, None]
    loose = FILTER_POLICIES.build("duplicates", {"threshold": 0.5, "scope": "shard"})
    assert loose.judge(records) == [None, Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE, Reason.EXACT_DUPLICATE, None]


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"original_answer": "the red ring is  at the CENTER"}, {}, None),
        ({"original_answer": "The red ring is at the top."}, {}, Reason.ANSWERS_DISAGREE),
        ({"original_answer": "The red ring is at the top."}, {"require_original": False}, None),
        ({"view_answers": ("The red ring is at the center.", "No.")}, {}, Reason.ANSWERS_DISAGREE),
        ({"view_answers": ("The red ring is at the center.", "No.")}, {"min_view_share": 0.5}, None),
        ({"view_answers": ()}, {"min_view_share": 0.0}, None),
    ],
)
def test_agreement_compares_normalised_answers(changes: dict, options: dict, reason: Reason | None) -> None:
    assert verdict("agreement", make_record(**changes), **options) is reason


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"answer_logprob": -0.41}, {}, Reason.LOW_CONFIDENCE),
        ({"answer_logprob": -0.41}, {"min_mean_logprob": -0.1}, None),
        ({"generated_logprob": -2.1}, {}, None),
        ({"generated_logprob": -2.1}, {"min_vig_mean_logprob": -0.1}, Reason.LOW_CONFIDENCE),
        ({"answer": ""}, {}, Reason.EMPTY),
    ],
)
def test_confidence_is_a_mean_per_token(changes: dict, options: dict, reason: Reason | None) -> None:
    assert verdict("confidence", make_record(**changes), **options) is reason


def test_an_answer_that_a_blank_image_gives_too_is_rejected() -> None:
    assert verdict("image_dependence", make_record(blank_logprob=-0.5)) is Reason.IMAGE_INDEPENDENT
    assert verdict("image_dependence", make_record(blank_logprob=-0.5), min_gain=0.4) is None


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"answer": "There is no ring."}, {}, Reason.NO_BASIS),
        ({"answer": "There is nothing here."}, {"denials": ["^Nope"]}, None),
        ({"answer": "Nope."}, {"denials": ["^Nope"]}, Reason.NO_BASIS),
        ({"question": "What is beside the green ring?"}, {}, Reason.NO_BASIS),
        ({"question": "What is beside the green ring?"}, {"require_in_description": False}, None),
        ({"question": "What is beside the green ring?"}, {"ignore_words": ["Green"]}, None),
        ({"question": "How many green rings are there?"}, {}, None),
        ({"question": "Is there a green ring?", "answer": "There is no green ring."}, {}, None),
        ({"question": "Is there a green ring?"}, {"exempt": []}, Reason.NO_BASIS),
        ({"question": "What color are the stars?"}, {}, None),
        ({"question": "Is the red ring to the left of the blue star?"}, {}, None),
        ({"view_description": ""}, {}, Reason.NO_BASIS),
    ],
)
def test_a_question_needs_a_basis(changes: dict, options: dict, reason: Reason | None) -> None:
    assert verdict("basis", make_record(**changes), **options) is reason


@pytest.mark.parametrize(
    ("name", "changes", "setting"),
    [
        ("image_dependence", {"blank_logprob": None}, "measure_blank"),
        ("agreement", {"view_answers": ()}, "num_views"),
        ("confidence", {"answer_logprob": None}, "none"),
        ("premise", {"refuted_premises": None}, "check_premises"),
        ("grounding", {"sentence_gains": ()}, "grounded"),
        ("short_answer", {"question_type": "okvqa"}, "none"),
    ],
)
def test_a_missing_measurement_names_its_setting(name: str, changes: dict, setting: str) -> None:
    with pytest.raises(MissingMeasurementError, match=setting):
        verdict(name, make_record(**changes))


def test_filters_are_held_against_the_correction_settings() -> None:
    filters = [FILTER_POLICIES.build(name) for name in FILTER_POLICIES.names()]
    check_measurements(filters, CORRECTION_POLICIES.build("grounded", {"check_premises": True}))
    with pytest.raises(MissingMeasurementError, match=r"num_views.*describe.*grounded.*measure_blank.*check_premises"):
        check_measurements(filters, CORRECTION_POLICIES.build("none"))
    bare = CORRECTION_POLICIES.build("sentence_by_sentence", {"num_views": 0, "describe": False, "measure_blank": False})
    modest = [FILTER_POLICIES.build("agreement", {"min_view_share": 0.0}), FILTER_POLICIES.build("confidence"), NoRings()]
    check_measurements(modest, bare)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("length", {"min_question_words": 5, "max_question_words": 4}, "expected 0 <= min_question_words"),
        ("duplicates", {"scope": "round"}, "expected one of"),
        ("duplicates", {"threshold": 1.1}, "expected 1.0 or less"),
        ("agreement", {"min_view_share": 2}, "expected a share"),
        ("agreement", {"min_view_share": 0, "require_original": False}, "nothing would be compared"),
        ("confidence", {"min_mean_logprob": 0.5}, "expected 0.0 or less"),
        ("image_dependence", {"min_gain": float("nan")}, "finite"),
        ("grounding", {"min_mean_gain": float("inf")}, "finite"),
        ("grounding", {"max_dropped_sentences": -1}, "expected 0 or more"),
        ("short_answer", {"min_weight": 101}, "expected 100.0 or less"),
        ("basis", {"denials": ["("]}, "not a regular expression"),
        ("basis", {"exempt": "^Is"}, "expected a list of texts"),
        ("agreement", {"min_views": 1}, "min_views"),
        ("sharpness", {}, "expected one of"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UnknownPolicyError, match=message):
        FILTER_POLICIES.build(name, options)
