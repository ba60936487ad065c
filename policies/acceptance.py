"""Acceptance: whether a candidate becomes the champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from policies.checks import check_at_least, check_share
from policies.registry import Registry

Correctness = Mapping[str, Sequence[bool]]
"""Held-out set name -> whether each question was answered right, in the same order for every model."""


@dataclass(frozen=True, slots=True)
class GeneratedStats:
    """What a round's generated answers look like: the guards against drift to one phrase or to ever longer answers."""

    distinct_2: float
    """Distinct word bigrams over all word bigrams, 0..1."""
    mean_answer_words: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision and what it rests on."""

    accepted: bool
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Candidate against champion over one or more held-out sets."""

    num_questions: int
    num_won: int
    num_lost: int

    @property
    def difference(self) -> float:
        """Candidate's accuracy minus champion's."""
        return (self.num_won - self.num_lost) / self.num_questions


class AcceptancePolicy(Protocol):
    """Decides on a candidate."""

    def decide(self, champion: Correctness, candidate: Correctness, generated: GeneratedStats, previous: GeneratedStats | None) -> Verdict:
        """The verdict on a candidate.

        Args:
            champion: how the champion did on the held-out sets.
            candidate: how the candidate did on the same questions.
            generated: the answers of the round that the candidate was trained on.
            previous: those of the round before; None in the first.

        Raises:
            ValueError: the two models were not asked the same questions, or none.
        """
        ...


ACCEPTANCE_POLICIES: Registry[AcceptancePolicy] = Registry("acceptance policy")


@ACCEPTANCE_POLICIES.register("always")
@dataclass(frozen=True)
class Always:
    """Every candidate becomes the champion; the numbers are given all the same."""

    def decide(self, champion: Correctness, candidate: Correctness, generated: GeneratedStats, previous: GeneratedStats | None) -> Verdict:
        return Verdict(True, "every candidate is accepted", _numbers(_compare_sets(champion, candidate)))


@ACCEPTANCE_POLICIES.register("paired_test")
@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Accept what is better on paired held-out questions beyond chance, worse on no set, and neither duller nor much longer.

    Options:
        min_gain: least pooled difference in accuracy, in shares (0.01 is one point).
        max_p: largest one-sided p of the exact McNemar test over all questions (McNemar 1947: the binomial test on the
            questions that only one of the two got right); 1 switches the test off.
        max_drop: largest loss of accuracy on any single set, in shares.
        min_diversity_ratio: least `distinct_2` as a share of the previous round's.
        max_length_ratio: `mean_answer_words` stays within 1/ratio..ratio of the previous round's.
    """

    min_gain: float = 0.0
    max_p: float = 0.1
    max_drop: float = 0.03
    min_diversity_ratio: float = 0.5
    max_length_ratio: float = 2.0

    def __post_init__(self) -> None:
        check_at_least("min_gain", self.min_gain, -1.0)
        check_share("max_p", self.max_p, allow_zero=False)
        check_share("max_drop", self.max_drop)
        check_share("min_diversity_ratio", self.min_diversity_ratio)
        check_at_least("max_length_ratio", self.max_length_ratio, 1.0)

    def decide(self, champion: Correctness, candidate: Correctness, generated: GeneratedStats, previous: GeneratedStats | None) -> Verdict:
        by_set = _compare_sets(champion, candidate)
        numbers = _numbers(by_set)
        faults = [*self._accuracy_faults(by_set, numbers), *self._drift_faults(generated, previous)]
        reason = "; ".join(faults) or f"accuracy {numbers['difference']:+.4f}, p {numbers['p_value']:.4f}"
        return Verdict(not faults, reason, numbers)

    def _accuracy_faults(self, by_set: Mapping[str, _Comparison], numbers: Mapping[str, float]) -> list[str]:
        faults = []
        if numbers["difference"] < self.min_gain:
            faults.append(f"accuracy {numbers['difference']:+.4f} is below min_gain {self.min_gain:+.4f}")
        if numbers["p_value"] > self.max_p:
            faults.append(f"p {numbers['p_value']:.4f} is above max_p {self.max_p}")
        faults += [
            f"accuracy on {name} {one.difference:+.4f} drops by more than max_drop {self.max_drop}"
            for name, one in by_set.items()
            if one.difference < -self.max_drop
        ]
        return faults

    def _drift_faults(self, generated: GeneratedStats, previous: GeneratedStats | None) -> list[str]:
        if previous is None:
            return []
        faults = []
        if generated.distinct_2 < self.min_diversity_ratio * previous.distinct_2:
            faults.append(
                f"distinct_2 fell from {previous.distinct_2:.3f} to {generated.distinct_2:.3f}, below {self.min_diversity_ratio} of it"
            )
        low, high = previous.mean_answer_words / self.max_length_ratio, previous.mean_answer_words * self.max_length_ratio
        if not low <= generated.mean_answer_words <= high:
            faults.append(f"mean_answer_words {generated.mean_answer_words:.1f} is outside {low:.1f}..{high:.1f}")
        return faults


def _compare_sets(champion: Correctness, candidate: Correctness) -> dict[str, _Comparison]:
    if set(champion) != set(candidate):
        raise ValueError(f"champion was evaluated on {sorted(champion)} and candidate on {sorted(candidate)}; expected the same sets")
    by_set = {name: _compare(name, champion[name], candidate[name]) for name in champion}
    if not by_set:
        raise ValueError("there is no held-out set to compare on; expected at least one")
    return by_set


def _compare(name: str, champion: Sequence[bool], candidate: Sequence[bool]) -> _Comparison:
    if len(champion) != len(candidate) or not champion:
        raise ValueError(
            f"held-out set {name}: {len(champion)} answers of the champion, {len(candidate)} of the candidate; expected as many, not 0"
        )
    pairs = [(bool(ours), bool(theirs)) for ours, theirs in zip(champion, candidate, strict=True)]
    return _Comparison(len(pairs), pairs.count((False, True)), pairs.count((True, False)))


def _numbers(by_set: Mapping[str, _Comparison]) -> dict[str, float]:
    compared = by_set.values()
    pooled = _Comparison(
        sum(one.num_questions for one in compared), sum(one.num_won for one in compared), sum(one.num_lost for one in compared)
    )
    return {
        "difference": pooled.difference,
        "p_value": _mcnemar_p(pooled.num_won, pooled.num_lost),
        "num_questions": float(pooled.num_questions),
        "num_won": float(pooled.num_won),
        "num_lost": float(pooled.num_lost),
        **{f"difference/{name}": one.difference for name, one in by_set.items()},
    }


def _mcnemar_p(num_won: int, num_lost: int) -> float:
    """One-sided exact p that a candidate no better than the champion wins at least `num_won` of the questions that differ."""
    from scipy.stats import binomtest  # here because it takes half a second to import

    if num_won + num_lost == 0:
        return 1.0
    return float(binomtest(num_won, num_won + num_lost, 0.5, alternative="greater").pvalue)
