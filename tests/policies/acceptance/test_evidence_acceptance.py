"""Acceptance by evidence: exact bounds, levels over a run, and guards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from policies.acceptance.paired import Comparison, interval, quantiles
from policies.acceptance.rules import (
    ACCEPTANCE_POLICIES,
    Answered,
    DecisionContext,
    Evidence,
    GeneratedStats,
    QuestionStats,
    Verdict,
    points,
)
from policies.acceptance.sequential import level, spent, weights
from policies.registry import UnknownPolicyError

WORDS = 8.0
QUESTIONS = QuestionStats(0.3, 0.6, {"complex": 0.4, "conversation": 0.6})
GENERATED = GeneratedStats(0.4, 10.0)


# ---- intervals


@pytest.mark.parametrize("sets", [[(1000, 75, 25)], [(200, 9, 3), (600, 60, 45)], [(50, 0, 4)], [(40, 40, 0), (7, 1, 2)]])
def test_quantiles_are_those_of_resampled_questions(sets: list[tuple[int, int, int]]) -> None:
    rng = np.random.default_rng(0)
    num = sum(n for n, _, _ in sets)
    drawn = sum(rng.multinomial(n, [won / n, lost / n, 1 - (won + lost) / n], 200_000) @ [1, -1, 0] for n, won, lost in sets) / num
    shares = (0.005, 0.025, 0.3, 0.5, 0.975)
    found = quantiles([Comparison(*one) for one in sets], *shares)
    assert found == sorted(found)
    for share, place in zip(shares, found, strict=True):
        below, up_to = np.mean(drawn < place - 1e-9), np.mean(drawn <= place + 1e-9)
        assert below - 0.004 <= share <= up_to + 0.004, (share, place)


def test_quantiles_are_exact_where_only_gains_differ() -> None:
    (found,) = quantiles([Comparison(300, 30, 0)], 0.01)
    assert found * 300 == pytest.approx(binom.ppf(0.01, 300, 0.1))


def test_answers_that_never_differ_have_an_interval_of_nothing() -> None:
    assert interval([Comparison(10, 0, 0)]) == (0.0, 0.0)


def test_sets_are_resampled_each_for_itself() -> None:
    apart = [Comparison(100, 100, 0), Comparison(100, 0, 0)]
    assert interval(apart) == (0.5, 0.5)
    low, high = interval([Comparison(200, 100, 0)])
    assert low < 0.5 < high


def test_points_show_their_interval() -> None:
    assert points(0.0312, 0.0081, 0.0539) == "+3.1 [+0.8, +5.4]"


# ---- levels


@pytest.mark.parametrize("spending", ["harmonic", "equal"])
@pytest.mark.parametrize("num_tests", [1, 3, 10])
def test_levels_add_up_to_alpha_while_nothing_is_rejected(spending: Any, num_tests: int) -> None:
    levels = [level(0.05, num_tests, spending, [False] * made) for made in range(num_tests)]
    assert sum(levels) == pytest.approx(0.05)
    assert levels == sorted(levels, reverse=True)
    assert spent(0.05, num_tests, spending, [False] * num_tests) == pytest.approx(0.05)


def test_a_rejection_hands_its_level_on_and_the_next_loses_it() -> None:
    own = [0.05 * weight for weight in weights(4, "harmonic")]
    assert own == pytest.approx([0.05 * 12 / 25, 0.05 * 6 / 25, 0.05 * 4 / 25, 0.05 * 3 / 25])
    assert level(0.05, 4, "harmonic", [True]) == pytest.approx(own[0] + own[1])
    assert level(0.05, 4, "harmonic", [True, True]) == pytest.approx(sum(own[:3]))
    assert level(0.05, 4, "harmonic", [True, False]) == pytest.approx(own[2])
    assert spent(0.05, 4, "harmonic", [True, False, True]) == pytest.approx(own[0] + own[1])


@pytest.mark.parametrize("better", [(), (0,), (1, 2), (0, 3), (0, 1, 2)])
def test_no_pattern_of_true_gains_leaves_more_than_alpha_to_the_others(better: Sequence[int]) -> None:
    """The bound of the union: every level that a test of a true hypothesis can have before the first error, whatever came out so far."""
    total = 0.0
    for test in range(4):
        if test not in better:
            total += level(0.05, 4, "equal", [before in better for before in range(test)])
    assert total <= 0.05 + 1e-12


def test_there_is_no_level_beyond_the_last_test() -> None:
    with pytest.raises(ValueError, match="expected fewer than num_tests 2"):
        level(0.05, 2, "equal", [False, True])


# ---- decisions


def answered(right: Sequence[bool], **changes: Any) -> Answered:
    return replace(Answered({"acceptance/dev": right}, mean_words=WORDS), **changes)


def pair(won: int, lost: int, num: int = 1000) -> tuple[Answered, Answered]:
    """Champion and candidate; the champion has 700 of 1,000 right in all."""
    same = [True] * (num * 7 // 10 - lost) + [False] * (num * 3 // 10 - won)
    return answered([False] * won + [True] * lost + same), answered([True] * won + [False] * lost + same)


def in_round(number: int, seed: Answered, history: Sequence[bool] = (), **changes: Any) -> DecisionContext:
    """A round of ten whose generated data are those of round 1."""
    numbers = {"generated_words": 10.0, "question_distinct_1": 0.3, "question_distinct_2": 0.6, "type_share/complex": 0.4}
    verdicts = [Verdict(accepted, "", numbers) for accepted in history]
    return replace(DecisionContext(number, 10, verdicts, seed, frozenset(), GENERATED, GENERATED, QUESTIONS), **changes)


def decide(champion: Answered, candidate: Answered, context: DecisionContext | None = None, **options: Any) -> Verdict:
    return ACCEPTANCE_POLICIES.build("evidence", options).decide(champion, candidate, context or in_round(1, champion))


def test_five_points_are_accepted_with_their_numbers() -> None:
    verdict = decide(*pair(100, 50))
    assert verdict.accepted
    assert verdict.reason.startswith("accuracy +5.0 [+2.6, +7.4], p 2.7e-05 at level 0.017")
    assert verdict.numbers["level"] == pytest.approx(0.05 * weights(10, "harmonic")[0])
    assert verdict.numbers["bound"] == pytest.approx(quantiles([Comparison(1000, 100, 50)], verdict.numbers["level"])[0])
    assert verdict.numbers["alpha_spent"] == 0.0
    assert verdict.numbers["num_won"] == 100


def test_what_the_margin_is_not_exceeded_by_is_rejected() -> None:
    champion, candidate = pair(100, 50)
    bound = decide(champion, candidate).numbers["bound"]
    assert decide(champion, candidate, margin=bound - 0.0005).accepted
    verdict = decide(champion, candidate, margin=bound)
    assert not verdict.accepted
    assert "is not above margin" in verdict.reason


def test_the_same_gain_is_less_evidence_after_rejections() -> None:
    champion, candidate = pair(91, 60)
    assert decide(champion, candidate).accepted
    late = decide(champion, candidate, in_round(6, champion, [False] * 5))
    assert not late.accepted
    assert "is above the level" in late.reason
    assert late.numbers["alpha_spent"] == pytest.approx(spent(0.05, 10, "harmonic", [False] * 6))
    assert decide(champion, candidate, in_round(6, champion, [False, True, True, True, True])).accepted


def test_no_gain_is_no_evidence() -> None:
    for won, lost in ((0, 0), (50, 50), (20, 60)):
        assert not decide(*pair(won, lost)).accepted


def test_a_loss_on_one_set_is_not_made_up_for_by_another() -> None:
    champion = Answered({"a": [True] * 100, "b": [False] * 100})
    candidate = Answered({"a": [True] * 94 + [False] * 6, "b": [True] * 60 + [False] * 40})
    assert "accuracy on a -0.0600 drops by more than max_drop" in decide(champion, candidate).reason
    assert decide(champion, candidate, max_drop=0.06).accepted


# ---- guards


def test_forgetting_is_measured_against_the_seed_model() -> None:
    champion, candidate = pair(100, 50)
    champion, candidate = (
        replace(one, scores={**one.scores, "acceptance/near": [True] * right + [False] * (100 - right)})
        for one, right in ((champion, 88), (candidate, 86))
    )
    seed = replace(champion, scores={**champion.scores, "acceptance/near": [True] * 90 + [False] * 10})
    near = frozenset({"acceptance/near"})
    verdict = decide(champion, candidate, in_round(1, seed, seed_domain=near))
    assert not verdict.accepted
    assert "forgetting on acceptance/near: -4.0 [-8.0, -1.0] of the seed model's accuracy, max_forgetting is 0.03" in verdict.reason
    assert verdict.numbers["forgetting/acceptance/near"] == pytest.approx(-0.04)
    assert decide(champion, candidate, in_round(1, champion, seed_domain=near)).accepted
    assert decide(champion, candidate, in_round(1, seed, seed_domain=near), max_forgetting=0.05).accepted


@pytest.mark.parametrize(
    ("champion_share", "seed_share", "candidate_share", "accepted"),
    [(10, 30, 12, True), (10, 30, 13, False), (30, 10, 13, False), (30, 30, 32, True), (0, 0, 3, False)],
)
def test_hallucination_is_held_against_the_better_of_champion_and_seed_model(
    champion_share: int, seed_share: int, candidate_share: int, accepted: bool
) -> None:
    flags = {share: {"acceptance/dev": [True] * share + [False] * (100 - share) + [None] * 50} for share in range(50)}
    champion, candidate = pair(100, 50)
    seed = replace(champion, hallucinated=flags[seed_share])
    champion, candidate = replace(champion, hallucinated=flags[champion_share]), replace(candidate, hallucinated=flags[candidate_share])
    verdict = decide(champion, candidate, in_round(1, seed))
    assert verdict.accepted == accepted
    assert ("hallucinating answers rose" in verdict.reason) != accepted
    assert verdict.numbers["hallucinated"] == pytest.approx(candidate_share / 100)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"questions": replace(QUESTIONS, distinct_1=0.14)}, "question_distinct_1 0.140 is below 0.150, 0.5 of round 1's"),
        ({"questions": replace(QUESTIONS, distinct_2=0.29)}, "question_distinct_2 0.290 is below 0.300"),
        ({"questions": replace(QUESTIONS, type_shares={"conversation": 1.0})}, "type_share/complex 0.000 is below 0.100"),
        ({"generated": GeneratedStats(0.4, 21.0)}, "generated_words 21.0 is outside 5.0..20.0"),
        ({"generated": GeneratedStats(0.4, 4.0)}, "generated_words 4.0 is outside 5.0..20.0"),
    ],
)
def test_drift_from_the_first_round_is_named(changes: dict[str, Any], fault: str) -> None:
    champion, candidate = pair(120, 30)
    verdict = decide(champion, candidate, in_round(3, champion, [True, True], **changes))
    assert not verdict.accepted
    assert fault in verdict.reason
    assert decide(champion, candidate, in_round(3, champion, [True, True])).accepted


def test_answers_that_grow_longer_than_the_seed_models_are_named() -> None:
    champion, candidate = pair(100, 50)
    assert decide(champion, replace(candidate, mean_words=16.0)).accepted
    verdict = decide(champion, replace(candidate, mean_words=16.1))
    assert "answer_words 16.1 is outside 4.0..16.0" in verdict.reason
    assert not verdict.accepted


def test_numbers_of_a_first_round_are_what_later_rounds_are_held_against() -> None:
    champion, candidate = pair(100, 50)
    first = decide(champion, candidate)
    second = replace(in_round(2, champion, [True]), history=[first], questions=replace(QUESTIONS, distinct_2=0.29))
    assert "question_distinct_2 0.290 is below 0.300" in decide(champion, candidate, second).reason


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0},
        {"alpha": 1.5},
        {"margin": -0.1},
        {"spending": "all"},
        {"confidence": 0},
        {"max_forgetting": 2},
        {"max_length_ratio": 0.5},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnknownPolicyError):
        ACCEPTANCE_POLICIES.build("evidence", options)


def test_a_run_of_equal_candidates_accepts_one_in_at_most_alpha_of_the_runs() -> None:
    """A short simulation; `benchmarks.quality.acceptance` is the long one."""
    rng = np.random.default_rng(3)
    policy = Evidence(alpha=0.3, spending="equal")
    num_false = 0
    for _ in range(150):
        history: list[bool] = []
        for number in range(1, 4):
            won = int(rng.binomial(60, 0.5))
            champion, candidate = pair(won, 60 - won, 500)
            history.append(policy.decide(champion, candidate, replace(in_round(number, champion, history), num_rounds=3)).accepted)
        num_false += any(history)
    assert 0.1 < num_false / 150 <= 0.3
