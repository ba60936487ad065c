from __future__ import annotations

import pytest

from policies import metrics
from policies.records import Reason
from tests.policies.make import make_record


def test_exact_match_forgives_white_space_only() -> None:
    assert metrics.exact_match(" The ring\nis red. ", "The ring is red.")
    assert not metrics.exact_match("the ring is red.", "The ring is red.")


def test_normalised_texts_differ_in_words_only() -> None:
    assert metrics.normalise(" It IS  red?! ") == "it is red"
    assert metrics.normalise("3.5.") == "3.5"
    assert metrics.normalise("...") == ""


def test_distinct_n_counts_over_all_texts() -> None:
    assert metrics.distinct_n(["a b c", "a b"], 2) == pytest.approx(2 / 3)
    assert metrics.distinct_n(["a b c", "A a"], 1) == pytest.approx(3 / 5)
    assert metrics.distinct_n(["one", ""], 2) == 0.0
    with pytest.raises(ValueError, match="expected 1 or more"):
        metrics.distinct_n([], 0)


def test_means_and_shares_of_nothing_are_zero() -> None:
    assert metrics.mean_words(["a b", "a b c d"]) == 3.0
    assert metrics.share([True, False, False, True]) == 0.5
    assert metrics.mean_words([]) == metrics.share([]) == 0.0


def test_view_agreement_is_a_share_or_unknown() -> None:
    assert metrics.view_agreement(make_record(answer="Red.", view_answers=("red", "blue"))) == 0.5
    assert metrics.view_agreement(make_record(view_answers=())) is None


def test_correctness_compares_the_same_records_before_and_after() -> None:
    records = [
        make_record(0, original_correct=False, answer_correct=True, accepted=True),
        make_record(1, original_correct=True, answer_correct=True),
        make_record(2, original_correct=True, answer_correct=False),
        make_record(3, original_correct=False, answer_correct=False),
        make_record(4, question="", original_correct=False, answer_correct=False),
        make_record(5, original_correct=False, answer_correct=None),
        make_record(6, accepted=True),
        make_record(7, original_correct=False, answer="", answer_correct=False),
        make_record(8, original_correct=True, answer="", answer_correct=False),
    ]
    assert metrics.correctness(records) == {"correct_before": 0.5, "correct_after": 0.5, "correct_kept": 1.0}
    assert metrics.correctness([make_record(accepted=True)]) == {}


def test_reasons_are_counted_by_name() -> None:
    records = [make_record(), make_record().rejected(Reason.TOO_LONG), make_record().rejected(Reason.EMPTY, Reason.TOO_LONG)]
    assert metrics.count_reasons(records) == {"rejected_empty": 1, "rejected_too_long": 2}
