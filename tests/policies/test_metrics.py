"""Plain functions from scores to numbers."""

import pytest

from policies.metrics import mean_interval


def test_right_and_wrong_answers_have_wilsons_interval() -> None:
    assert mean_interval([1.0] * 8 + [0.0] * 2) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # as in Newcombe 1998
    assert mean_interval([1.0] * 5)[1] == 1.0


def test_graded_scores_have_a_normal_interval() -> None:
    assert mean_interval([0.4, 0.6] * 50) == pytest.approx((0.4803, 0.5197), abs=1e-4)
    assert mean_interval([0.2, 0.4, 0.6, 0.8]) == pytest.approx((0.2470, 0.7530), abs=1e-4)
    assert mean_interval([0.1, 0.9]) == (0.0, 1.0), "it ends where scores end"
    assert mean_interval([0.3]) == (0.3, 0.3)
