from __future__ import annotations

import pytest

from policies import metrics
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
