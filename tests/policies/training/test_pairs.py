"""Pairs: which records make one, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from policies.correction.methods import NoCorrection, SentenceBySentence
from policies.records import Record, TrainingSample, to_table
from policies.registry import UnknownPolicyError
from policies.training.objectives import OBJECTIVES, Dpo
from policies.training.pairs import Pair, is_changed, is_evident, pairs_of
from tests.policies.make import make_record

RED, BLUE = "The ring is red.", "The ring is blue."


def changed(**changes: Any) -> Record:
    """A record whose answer correction changed, with everything for the corrected one."""
    measured = {"view_answers": (RED, RED), "answer_logprob": -0.2, "answer_num_tokens": 4, "generated_num_tokens": 10}
    return make_record(**{"original_answer": BLUE, "answer": RED, "generated_logprob": -5.0, **measured, **changes})


def evident(record: Record, **options: Any) -> bool:
    return bool(is_evident(to_table([record]), Dpo(**options))[0])


def test_a_pair_chooses_the_corrected_answer_to_the_question() -> None:
    (pair,) = pairs_of(to_table([changed(question="Which color?", question_type="okvqa")]))
    assert pair == Pair("r1-s0-0", "image-0", "okvqa", "Question: Which color? Short answer:", RED, BLUE)
    assert [sample.turns[0][1] for sample in pair.samples] == [RED, BLUE]
    assert pair.samples[0] == TrainingSample("image-0", ((pair.prompt, RED),), "r1-s0-0", "okvqa")


@pytest.mark.parametrize(("original", "answer"), [(RED, RED), ("the  ring is red", RED), ("", RED), (" . ", RED), (BLUE, "")])
def test_answers_that_say_the_same_or_nothing_make_no_pair(original: str, answer: str) -> None:
    records = [changed(), changed(original_answer=original, answer=answer)]
    assert is_changed(to_table(records)).tolist() == [True, False]


def test_more_views_must_speak_for_the_corrected_answer_than_for_the_original_one() -> None:
    assert evident(changed(view_answers=(RED, "the ring is red")), min_agreement_gain=1.0)
    assert evident(changed(view_answers=(RED, "No idea.")), min_agreement_gain=0.5)
    assert not evident(changed(view_answers=(RED, BLUE)), min_agreement_gain=0.5)
    assert not evident(changed(view_answers=(BLUE, BLUE)), min_agreement_gain=0.0)
    assert not evident(changed(view_answers=()), min_agreement_gain=-1.0), "not measured"


def test_the_corrected_answer_must_be_likelier_than_what_vig_wrote() -> None:
    only = {"min_agreement_gain": None}
    assert evident(changed(), **only, min_logprob_gain=0.449)
    assert not evident(changed(), **only, min_logprob_gain=0.451)
    assert not evident(changed(answer_logprob=None), **only, min_logprob_gain=-9.0)
    assert not evident(changed(generated_num_tokens=0), **only, min_logprob_gain=-9.0)
    assert evident(changed(answer_logprob=None, view_answers=()), **only)


def test_views_are_needed_where_they_are_compared() -> None:
    without_views = SentenceBySentence(num_views=0)
    assert Dpo().missing(without_views).startswith("correction num_views of 1 or more")
    assert Dpo().missing(SentenceBySentence()) == Dpo(min_agreement_gain=None).missing(without_views) == ""
    assert Dpo().missing(NoCorrection()).startswith("a correction other than `none`")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0; expected a number above 0"),
        ({"weight": float("inf")}, "weight is inf; expected a number above 0"),
        ({"pairs_per_step": 0}, "pairs_per_step is 0; expected 1 or more"),
        ({"pairs_per_step": 2.0}, "pairs_per_step is 2.0; expected a whole number"),
        ({"min_agreement_gain": 1.5}, "min_agreement_gain is 1.5; expected a difference of two shares"),
        ({"min_logprob_gain": float("nan")}, "min_logprob_gain is nan; expected a finite number"),
        ({"betta": 1}, "betta"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownPolicyError, match=message):
        OBJECTIVES.build("dpo", options)
    with pytest.raises(UnknownPolicyError, match="not a valid training objective: it extends neither"):
        OBJECTIVES.build("policies.training.pairs:Pair", dict.fromkeys(Pair.__slots__, ""))
