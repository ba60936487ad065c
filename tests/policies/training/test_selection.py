from __future__ import annotations

import pytest

from policies.records import Reason, Record
from policies.registry import UnknownPolicyError
from policies.training.selection import SELECTION_POLICIES, score_of
from tests.policies.make import make_record


def accepted(index: int, logprob: float, question_type: str = "conversation") -> Record:
    return make_record(index, accepted=True, answer_logprob=logprob, question_type=question_type)


def chosen(records: list[Record]) -> list[str]:
    return [record.record_id for record in records if record.trained_on]


def test_the_score_adds_confidence_and_agreement() -> None:
    answer = make_record().answer
    assert score_of(make_record(answer_logprob=-0.8, answer_num_tokens=8, view_answers=(answer, "No."))) == pytest.approx(0.4)
    assert score_of(make_record(answer_logprob=None, view_answers=())) == 0.0


def test_all_takes_every_accepted_record_and_no_other() -> None:
    rejected = make_record(1).rejected(Reason.EMPTY)
    selected = SELECTION_POLICIES.build("all").select([accepted(0, -1.0), rejected])
    assert chosen(selected) == ["r1-s0-0"]
    assert selected[0].score is not None
    assert selected[1] == rejected


def test_top_share_takes_the_best_of_each_type() -> None:
    records = [accepted(0, -3), accepted(1, -1), accepted(2, -2), accepted(3, -4), accepted(4, -90, "detail")]
    selected = SELECTION_POLICIES.build("top_share", {"share": 0.5}).select(records)
    assert [record.record_id for record in selected] == [record.record_id for record in records]
    assert chosen(selected) == ["r1-s0-1", "r1-s0-2", "r1-s0-4"]


def test_ties_go_to_the_lower_record_id() -> None:
    records = [accepted(2, -1), accepted(0, -1), accepted(1, -1)]
    policy = SELECTION_POLICIES.build("top_share", {"share": 0.6})
    assert set(chosen(policy.select(records))) == set(chosen(policy.select(records[::-1]))) == {"r1-s0-0", "r1-s0-1"}


def test_balanced_types_give_as_many_as_the_rarest() -> None:
    records = [accepted(i, -i) for i in range(6)] + [accepted(6, -1, "detail"), accepted(7, -2, "detail")]
    selected = SELECTION_POLICIES.build("top_share", {"share": 0.5, "balance_types": True}).select(records)
    assert chosen(selected) == ["r1-s0-0", "r1-s0-6"]


def test_nothing_accepted_is_nothing_chosen() -> None:
    assert chosen(SELECTION_POLICIES.build("top_share", {"balance_types": True}).select([make_record()])) == []


@pytest.mark.parametrize("share", [0.0, -1, 1.5])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(UnknownPolicyError, match="expected a share above 0"):
        SELECTION_POLICIES.build("top_share", {"share": share})
