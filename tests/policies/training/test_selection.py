from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from policies.columns import num_words, round_columns
from policies.records import Record, to_table
from policies.registry import UnknownPolicyError
from policies.training.selection import SELECTION_POLICIES, score_of
from tests.policies.make import make_record


def accepted(index: int, logprob: float, question_type: str = "conversation") -> Record:
    record = make_record(index, accepted=True, answer_logprob=logprob, question_type=question_type)
    return replace(record, score=score_of(record))


def chosen(name: str, records: list[Record], **options: Any) -> list[str]:
    """Ids of the records that a policy takes, in their order."""
    mask = SELECTION_POLICIES.build(name, options).select(round_columns(to_table(records)))
    return [record.record_id for record, taken in zip(records, mask, strict=True) if taken]


def test_the_score_adds_confidence_and_agreement() -> None:
    answer = make_record().answer
    assert score_of(make_record(answer_logprob=-0.8, answer_num_tokens=8, view_answers=(answer, "No."))) == pytest.approx(0.4)
    assert score_of(make_record(answer_logprob=None, view_answers=())) == 0.0


def test_all_takes_every_record() -> None:
    assert chosen("all", [accepted(0, -1.0), accepted(1, -9.0)]) == ["r1-s0-0", "r1-s0-1"]
    assert chosen("all", []) == []


def test_top_share_takes_the_best_of_each_type() -> None:
    records = [accepted(0, -3), accepted(1, -1), accepted(2, -2), accepted(3, -4), accepted(4, -90, "detail")]
    assert chosen("top_share", records, share=0.5) == ["r1-s0-1", "r1-s0-2", "r1-s0-4"]


def test_ties_go_to_the_lower_record_id() -> None:
    records = [accepted(2, -1), accepted(0, -1), accepted(1, -1)]
    assert set(chosen("top_share", records, share=0.6)) == set(chosen("top_share", records[::-1], share=0.6)) == {"r1-s0-0", "r1-s0-1"}


def test_balanced_types_give_as_many_as_the_rarest() -> None:
    records = [accepted(i, -i) for i in range(6)] + [accepted(6, -1, "detail"), accepted(7, -2, "detail")]
    assert chosen("top_share", records, share=0.5, balance_types=True) == ["r1-s0-0", "r1-s0-6"]


@pytest.mark.parametrize("balance_types", [False, True])
def test_nothing_accepted_is_nothing_chosen(balance_types: bool) -> None:
    assert chosen("top_share", [], balance_types=balance_types) == []


@pytest.mark.parametrize("share", [0.0, -1, 1.5])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(UnknownPolicyError, match="expected a share above 0"):
        SELECTION_POLICIES.build("top_share", {"share": share})


def test_words_are_counted_as_python_counts_them() -> None:
    texts = ["", "  ", "a", " a  b ", "x\u2003y\tz\n", "un mot\u00a0deux"]
    assert num_words(pa.chunked_array([texts[:2], texts[2:]])).to_pylist() == [len(text.split()) for text in texts]
