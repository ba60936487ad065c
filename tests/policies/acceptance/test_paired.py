"""Two models on the same questions, with graded scores; right and wrong are in `test_evidence_acceptance`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from policies.acceptance.paired import Comparison, compare, interval, mcnemar_p, p_value, pooled, quantiles, sign_flip_p


def test_right_and_wrong_are_counted_and_graded_scores_kept() -> None:
    assert compare("a", [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]) == Comparison(3, 1, 1)
    graded = compare("a", [0.25, 1.0, 0.5], [0.75, 1.0, 0.25])
    assert graded == Comparison(3, 1, 1, (0.5, 0.0, -0.25))
    assert graded.difference == pytest.approx(0.25 / 3)


def test_what_either_model_has_no_score_on_is_left_out() -> None:
    assert compare("a", [None, 0.0, 1.0], [1.0, 1.0, None]) == Comparison(1, 1, 0)
    with pytest.raises(ValueError, match="0 scored for both; expected equal numbers above 0"):
        compare("a", [None, 0.5], [0.5, None])


def test_sets_of_both_kinds_are_pooled_question_by_question() -> None:
    total = pooled([Comparison(4, 2, 1), Comparison(2, 1, 0, (0.5, 0.0))])
    assert (total.num_questions, total.num_won, total.num_lost) == (6, 3, 1)
    assert sorted(total.gains) == [-1.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    assert total.difference == pytest.approx(1.5 / 6)
    assert pooled([Comparison(4, 2, 1), Comparison(6, 0, 1)]) == Comparison(10, 2, 2)


@pytest.mark.parametrize(("won", "lost", "same"), [(3, 0, 2), (10, 4, 30), (4, 10, 0), (60, 31, 500), (0, 0, 5)])
def test_on_right_and_wrong_the_sign_flip_test_is_mcnemars(won: int, lost: int, same: int) -> None:
    differences = [1.0] * won + [-1.0] * lost + [0.0] * same
    assert sign_flip_p(differences) == pytest.approx(mcnemar_p(won, lost), abs=1e-9)
    assert p_value(Comparison(won + lost + same, won, lost)) == mcnemar_p(won, lost)


@pytest.mark.parametrize("differences", [[0.5, 0.25, -0.125, 1.0, 0.0, 0.5], [-0.5, 0.1, 0.1, 0.2], [0.3] * 8 + [-0.6, 0.9]])
def test_the_p_of_graded_scores_counts_all_ways_to_draw_the_signs(differences: list[float]) -> None:
    draws = [
        sum(sign * one for sign, one in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = np.mean(np.array(draws) >= sum(differences) - 1e-9)
    assert sign_flip_p(differences) == pytest.approx(expected, abs=1e-9)
    assert p_value(Comparison(len(differences), 1, 1, tuple(differences))) == sign_flip_p(differences)


def test_a_steady_small_gain_is_shown_and_its_p_is_never_zero() -> None:
    rng = np.random.default_rng(0)
    steady = rng.normal(0.004, 0.01, 400)
    assert 0.0 < sign_flip_p(steady.tolist()) < 1e-10
    assert sign_flip_p((-steady).tolist()) > 1 - 1e-9
    assert 0.0 < sign_flip_p([0.01] * 3000) < 1e-12
    assert sign_flip_p([0.0] * 5) == 1.0


def test_chance_alone_is_below_a_level_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(1)
    found = [sign_flip_p(rng.normal(0.0, 0.1, 25).tolist()) for _ in range(150)]
    assert 0.04 < np.mean(np.array(found) <= 0.1) < 0.16


@pytest.mark.parametrize("sizes", [(300,), (40, 200)])
def test_quantiles_of_graded_scores_are_those_of_resampled_questions(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    sets = [tuple(np.clip(rng.normal(0.02, 0.2, size), -1, 1).tolist()) for size in sizes]
    num = sum(sizes)
    drawn = np.zeros(20_000)
    for one in sets:
        drawn += rng.choice(np.array(one), (20_000, len(one))).sum(1) / num
    shares = (0.01, 0.025, 0.5, 0.975)
    found = quantiles([Comparison(len(one), 1, 1, one) for one in sets], *shares)
    assert found == sorted(found)
    spread = drawn.std()
    for share, place in zip(shares, found, strict=True):
        assert place == pytest.approx(np.quantile(drawn, share), abs=0.08 * spread)


def test_the_interval_of_graded_scores_is_that_of_counts_where_they_say_the_same() -> None:
    counted = Comparison(200, 30, 10)
    graded = Comparison(200, 30, 10, tuple(counted.gains.tolist()))
    assert interval([graded]) == pytest.approx(interval([counted]))
    assert interval([Comparison(3, 0, 0, (0.0, 0.0, 0.0))]) == (0.0, 0.0)
