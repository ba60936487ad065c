"""Compare two models on the same questions: paired tests, and intervals of the difference.

Scores are 0..1. If all of them are 0 or 1, p is that of McNemar's exact test on the questions that only one of the two got right.
Graded scores are tested by flipping the signs of the differences, which is the same test for scores of 0 and 1.

Intervals are percentile bootstraps over questions, drawn with replacement within each set (Efron and Tibshirani 1993). Neither needs
repetitions or a seed: they are computed from the distribution of a sum of independent draws, whose characteristic function is a product.
For this, graded differences are rounded to steps of a thousandth of the largest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policies.checks import check_share

Score = float | None
"""Score of one answer, 0..1; None if it could not be scored: the question is then left out of every comparison."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model against another over the questions of one or more sets."""

    num_questions: int
    num_won: int
    """Questions on which the one has the higher score."""
    num_lost: int
    differences: tuple[float, ...] | None = None
    """The one's score minus the other's on every question, if scores are graded; None if the counts suffice."""

    @property
    def difference(self) -> float:
        """The one's mean score minus the other's, in shares."""
        won = self.num_won - self.num_lost if self.differences is None else math.fsum(self.differences)
        return won / self.num_questions

    @property
    def gains(self) -> np.ndarray:
        """The difference on every question, in any order."""
        if self.differences is not None:
            return np.array(self.differences)
        return np.repeat([1.0, -1.0, 0.0], [self.num_won, self.num_lost, self.num_questions - self.num_won - self.num_lost])


def compare(name: str, other: Sequence[Score], one: Sequence[Score]) -> Comparison:
    """`one` against `other` on the set `name`, question by question.

    Raises:
        ValueError: their numbers of answers differ, or no question has a score from both.
    """
    pairs = [(before, after) for before, after in zip(other, one, strict=False) if before is not None and after is not None]
    if len(other) != len(one) or not pairs:
        raise ValueError(
            f"held-out set {name}: {len(other)} answers of the champion, {len(one)} of the candidate, {len(pairs)} scored for both; "
            "expected equal numbers above 0"
        )
    before, after = np.array(pairs, dtype=float).T
    differences = np.round(after - before, _DECIMALS)
    is_graded = not np.isin([before, after], (0.0, 1.0)).all()
    num_won, num_lost = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    return Comparison(len(pairs), num_won, num_lost, tuple(differences.tolist()) if is_graded else None)


def compare_sets(champion: Mapping[str, Sequence[Score]], candidate: Mapping[str, Sequence[Score]]) -> dict[str, Comparison]:
    """The candidate against the champion, by set.

    Raises:
        ValueError: the two were not asked the same questions, or none.
    """
    if set(champion) != set(candidate):
        raise ValueError(f"champion was evaluated on {sorted(champion)} and candidate on {sorted(candidate)}; expected the same sets")
    by_set = {name: compare(name, champion[name], candidate[name]) for name in champion}
    if not by_set:
        raise ValueError("there is no held-out set to compare on; expected at least one")
    return by_set


def pooled(compared: Iterable[Comparison]) -> Comparison:
    """All questions of several sets as one."""
    sets = list(compared)
    is_graded = any(one.differences is not None for one in sets)
    return Comparison(
        sum(one.num_questions for one in sets), sum(one.num_won for one in sets), sum(one.num_lost for one in sets),
        tuple(np.concatenate([one.gains for one in sets]).tolist()) if is_graded else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lead:
    """A candidate's lead over the champion on the acceptance sets, in shares, with its 95 % interval."""

    difference: float
    low: float
    high: float


def lead_of(numbers: Mapping[str, float]) -> Lead | None:
    """The lead in the numbers of a verdict, whose interval may have to be computed from its counts; None if there was no candidate."""
    if {"difference", "low", "high"} <= numbers.keys():
        return Lead(numbers["difference"], numbers["low"], numbers["high"])
    if not {"num_questions", "num_won", "num_lost"} <= numbers.keys():
        return None
    num_questions, num_won, num_lost = (round(numbers[name]) for name in ("num_questions", "num_won", "num_lost"))
    counts = Comparison(num_questions, num_won, num_lost)
    return Lead(counts.difference, *interval([counts]))


def p_value(compared: Comparison) -> float:
    """One-sided p: the probability that a model that is no better has at least this lead."""
    if compared.differences is None:
        return mcnemar_p(compared.num_won, compared.num_lost)
    return sign_flip_p(compared.differences)


def mcnemar_p(num_won: int, num_lost: int) -> float:
    """One-sided exact p of McNemar's test: that a model no better wins at least `num_won` of the questions that differ (McNemar 1947)."""
    from scipy.stats import binomtest  # here because it takes half a second to import

    if num_won + num_lost == 0:
        return 1.0
    return float(binomtest(num_won, num_won + num_lost, 0.5, alternative="greater").pvalue)


def sign_flip_p(differences: Sequence[float]) -> float:
    """One-sided p of the paired sign-flip test: that the sum of the differences, each with a sign drawn at random, is at least what it is
    (Fisher 1935). Exact for differences in steps of a thousandth of the largest, down to where rounding leaves only Hoeffding's bound."""
    steps, _ = _in_steps([np.asarray(differences, dtype=float)])
    observed, sizes = int(steps[0].sum()), np.abs(steps[0])
    reach, squares = int(sizes.sum()), float(np.sum(sizes.astype(float) ** 2))
    if observed <= -reach:
        return 1.0
    bound = max(math.exp(-(max(0, observed) ** 2) / (2 * squares)), sys.float_info.min)
    half = min(reach, math.ceil(_SPREADS * math.sqrt(squares)))  # the tail beyond is below rounding
    if observed > half:
        return bound
    angles = 2 * np.pi * np.arange(half + 1) / (2 * half + 1)
    of_sum = np.ones(half + 1)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        of_sum *= np.cos(angles * size) ** count
    probabilities = np.roll(np.fft.irfft(of_sum, 2 * half + 1), half)  # of the sums -half..half
    return min(bound, max(float(probabilities[max(0, observed + half) :].sum()), _ROUNDING))


def interval(compared: Iterable[Comparison], confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided bootstrap interval of the pooled difference, in shares, with equal tails."""
    check_share("confidence", confidence, allow_zero=False)
    low, high = quantiles(compared, (1 - confidence) / 2, (1 + confidence) / 2)
    return low, high


def quantiles(compared: Iterable[Comparison], *shares: float) -> list[float]:
    """Quantiles of the pooled difference over bootstrap resamples of the questions: for each of `shares` (0..1) the least difference
    that this share of the resamples does not exceed. The one of a small share `level` is a lower bound of confidence 1 - `level`.
    """
    sets = list(compared)
    if any(one.differences is not None for one in sets):
        return _graded_quantiles([one.gains for one in sets], shares)
    num = sum(one.num_questions for one in sets)
    turn = np.exp(2j * np.pi * np.arange(num + 1) / (2 * num + 1))
    of_sum = np.ones(num + 1, dtype=complex)
    for one in sets:
        won, lost = one.num_won / one.num_questions, one.num_lost / one.num_questions
        of_sum *= (1 - won - lost + won * turn + lost * turn.conj()) ** one.num_questions
    probabilities = np.roll(np.fft.irfft(of_sum.conj(), 2 * num + 1), num)  # of the sums -num..num
    below = np.cumsum(probabilities)
    places = np.searchsorted(below, np.array(shares) + _ROUNDING)
    return [float(min(place, 2 * num) - num) / num for place in places]


def _graded_quantiles(gains: Sequence[np.ndarray], shares: Sequence[float]) -> list[float]:
    steps, size = _in_steps(gains)
    num = sum(map(len, steps))
    off = (sum(math.fsum(one) for one in gains) - size * sum(int(one.sum()) for one in steps)) / num
    center = round(sum(float(one.sum()) for one in steps))
    variance = sum(len(one) * float(one.var()) for one in steps)
    # Bernstein's inequality: the tail beyond is below rounding.
    half = math.ceil(math.sqrt(2 * _MAX_EXPONENT * variance) + 2 * _MAX_EXPONENT / 3 * 2 * _NUM_STEPS)
    half = min(half, 2 * num * _NUM_STEPS)
    of_sum = np.ones(half + 1, dtype=complex)
    for one in steps:
        counts = np.bincount(one % (2 * half + 1), minlength=2 * half + 1)
        of_sum *= (np.fft.rfft(counts) / len(one)) ** len(one)
    sums = center - half + np.arange(2 * half + 1)
    below = np.cumsum(np.fft.irfft(of_sum, 2 * half + 1)[sums % (2 * half + 1)])
    places = np.searchsorted(below, np.array(shares) + _ROUNDING)
    return [float(sums[min(place, 2 * half)]) * size / num + off for place in places]


def _in_steps(gains: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """The differences of each set as whole numbers of a step, and the step."""
    largest = max(float(np.abs(one).max()) for one in gains)
    size = largest / _NUM_STEPS if largest else 1.0
    return [np.rint(one / size).astype(np.int64) for one in gains], size


_DECIMALS = 9
"""Decimals of score differences; smaller differences come from the order of sums."""
_NUM_STEPS = 1000
_SPREADS = 8.0
"""Standard deviations: by Hoeffding's inequality the tail beyond is below `_ROUNDING`."""
_MAX_EXPONENT = 28.0
"""exp(-28) is below `_ROUNDING`."""
_ROUNDING = 1e-12
"""Largest error of the transform's sums; a tail of exactly the requested weight counts as within it."""
