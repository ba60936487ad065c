"""Which filter has given a reason."""

from __future__ import annotations

from policies.decontamination.held_out import HeldOutQuestionFilter
from policies.filtering.attribution import REASONS, judges, rejected_by
from policies.filtering.filters import FILTER_POLICIES
from policies.records import Reason


def place(reason: str, *chain: str) -> str:
    found = judges(chain)
    number = rejected_by(reason, found)
    return found[number].name if number >= 0 else ""


def test_every_filter_of_this_project_is_known() -> None:
    assert set(REASONS) == {*FILTER_POLICIES.names(), HeldOutQuestionFilter.name}


def test_a_reason_tells_its_filter() -> None:
    chain = ("parsable", "length", "agreement", "package.module:Own", "confidence")
    assert place(Reason.UNPARSABLE, *chain) == "parsable"
    assert place(Reason.ANSWERS_DISAGREE, *chain) == "agreement"
    assert place(Reason.LOW_CONFIDENCE, *chain) == "confidence"
    assert place("too_dark", *chain) == "package.module:Own"
    assert place(Reason.NEAR_DUPLICATE, *chain) == "deduplication"
    assert place(Reason.UNREADABLE_IMAGE, *chain) == ""


def test_an_empty_record_is_rejected_by_the_first_filter_that_says_so() -> None:
    assert place(Reason.EMPTY, "parsable", "agreement", "length") == "agreement"


def test_filters_that_share_a_reason_are_not_told_apart() -> None:
    chain = ("confidence", "length", "short_answer")
    assert place(Reason.LOW_CONFIDENCE, *chain) == "confidence or short_answer"
    assert [one.name for one in judges(chain)] == ["confidence or short_answer", "length", "deduplication"]
    assert [one.name for one in judges(["length", "length_2", "duplicates"])] == ["length or length_2", "duplicates"]
