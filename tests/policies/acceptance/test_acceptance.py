from __future__ import annotations

import pytest

from policies.acceptance.rules import ACCEPTANCE_POLICIES, Answered, DecisionContext, GeneratedStats, QuestionStats, Verdict
from policies.registry import UnknownPolicyError

STATS = GeneratedStats(distinct_2=0.4, mean_answer_words=10.0)


def answers(num_won: int, num_lost: int, num_same: int = 80) -> tuple[list[bool], list[bool]]:
    """Correctness of champion and candidate on a set where the candidate wins and loses so many questions."""
    champion = [False] * num_won + [True] * num_lost + [True, False] * (num_same // 2)
    candidate = [True] * num_won + [False] * num_lost + [True, False] * (num_same // 2)
    return champion, candidate


def decide(
    sets: dict[str, tuple[list[bool], list[bool]]],
    generated: GeneratedStats = STATS,
    previous: GeneratedStats | None = STATS,
    name: str = "paired_test",
    **options: float,
) -> Verdict:
    champion = Answered({key: pair[0] for key, pair in sets.items()})
    candidate = Answered({key: pair[1] for key, pair in sets.items()})
    return ACCEPTANCE_POLICIES.build(name, options).decide(champion, candidate, context(champion, generated, previous))


def context(seed: Answered, generated: GeneratedStats = STATS, previous: GeneratedStats | None = STATS) -> DecisionContext:
    return DecisionContext(1, 3, [], seed, frozenset(), generated, previous, QuestionStats(0.5, 0.5, {"conversation": 1.0}))


def test_a_clear_gain_is_accepted_with_its_numbers() -> None:
    verdict = decide({"near": answers(10, 2, 88), "far": answers(8, 0, 92)})
    assert verdict.accepted
    assert verdict.numbers == {
        "difference": pytest.approx(0.08),
        "p_value": pytest.approx(0.0002012, abs=1e-6),
        "num_questions": 200.0,
        "num_won": 18.0,
        "num_lost": 2.0,
        "difference/near": pytest.approx(0.08),
        "difference/far": pytest.approx(0.08),
    }


@pytest.mark.parametrize(("num_won", "num_lost", "fault"), [(10, 8, "max_p"), (3, 6, "min_gain"), (0, 0, "max_p")])
def test_a_gain_that_chance_explains_is_rejected(num_won: int, num_lost: int, fault: str) -> None:
    verdict = decide({"near": answers(num_won, num_lost)})
    assert not verdict.accepted
    assert fault in verdict.reason


def test_the_exact_p_is_the_binomial_tail() -> None:
    assert decide({"near": answers(3, 0)}).numbers["p_value"] == pytest.approx(1 / 8)
    assert decide({"near": answers(3, 0)}, max_p=0.125).accepted
    assert decide({"near": answers(0, 0)}, max_p=1.0).accepted


def test_a_loss_on_one_set_is_rejected_whatever_the_others_gain() -> None:
    sets = {"near": answers(0, 4, 96), "far": answers(40, 0, 60)}
    verdict = decide(sets)
    assert not verdict.accepted
    assert "accuracy on near -0.0400" in verdict.reason
    assert decide(sets, max_drop=0.04).accepted


@pytest.mark.parametrize(
    ("generated", "fault"),
    [
        (GeneratedStats(0.19, 10.0), "distinct_2"),
        (GeneratedStats(0.4, 20.5), "mean_answer_words"),
        (GeneratedStats(0.4, 4.9), "mean_answer_words"),
    ],
)
def test_drift_of_the_generated_answers_is_rejected(generated: GeneratedStats, fault: str) -> None:
    verdict = decide({"near": answers(20, 0)}, generated)
    assert not verdict.accepted
    assert fault in verdict.reason
    assert decide({"near": answers(20, 0)}, generated, previous=None).accepted


def test_every_fault_is_named() -> None:
    reason = decide({"near": answers(0, 9)}, GeneratedStats(0.0, 0.0)).reason
    assert all(word in reason for word in ("min_gain", "max_p", "max_drop", "distinct_2", "mean_answer_words"))


def test_always_accepts_and_still_counts() -> None:
    verdict = decide({"near": answers(0, 9)}, GeneratedStats(0.0, 0.0), name="always")
    assert verdict.accepted
    assert verdict.numbers["num_lost"] == 9.0


@pytest.mark.parametrize("name", ACCEPTANCE_POLICIES.names())
@pytest.mark.parametrize(
    ("champion", "candidate"), [({"a": [True]}, {"b": [True]}), ({"a": [True]}, {"a": [True, False]}), ({"a": []}, {"a": []}), ({}, {})]
)
def test_unpaired_answers_are_refused(name: str, champion: dict, candidate: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        ACCEPTANCE_POLICIES.build(name).decide(Answered(champion), Answered(candidate), context(Answered(champion)))


@pytest.mark.parametrize(
    "options", [{"max_p": 0}, {"max_drop": 2}, {"max_length_ratio": 0.5}, {"min_diversity_ratio": -1}, {"min_gain": float("nan")}]
)
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(UnknownPolicyError):
        ACCEPTANCE_POLICIES.build("paired_test", options)
