"""Two models on the same questions: what one got right and the other did not, and what that says about all questions.

Intervals are percentile bootstraps over questions, drawn with replacement within each set (Efron and Tibshirani 1993). A question
counts +1, 0 or -1, so the distribution that repetitions would only sample is computed exactly: it is a sum of independent draws,
and its characteristic function a product. No seed, no number of repetitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policies.checks import check_share


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model against another over the questions of one or more sets."""

    num_questions: int
    num_won: int
    """Questions that the one got right and the other did not."""
    num_lost: int

    @property
    def difference(self) -> float:
        """The one's accuracy minus the other's, in shares."""
        return (self.num_won - self.num_lost) / self.num_questions


def compare(name: str, other: Sequence[bool], one: Sequence[bool]) -> Comparison:
    """`one` against `other` on the set `name`, question by question.

    Raises:
        ValueError: they are not as many, or none.
    """
    if len(other) != len(one) or len(one) == 0:
        raise ValueError(f"held-out set {name}: {len(other)} answers of the champion, {len(one)} of the candidate; expected as many, not 0")
    before, after = np.asarray(other, dtype=bool), np.asarray(one, dtype=bool)
    return Comparison(len(one), int(np.sum(after & ~before)), int(np.sum(before & ~after)))


def compare_sets(champion: Mapping[str, Sequence[bool]], candidate: Mapping[str, Sequence[bool]]) -> dict[str, Comparison]:
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
    return Comparison(sum(one.num_questions for one in sets), sum(one.num_won for one in sets), sum(one.num_lost for one in sets))


def mcnemar_p(num_won: int, num_lost: int) -> float:
    """One-sided exact p of McNemar's test: that a model no better wins at least `num_won` of the questions that differ (McNemar 1947)."""
    from scipy.stats import binomtest  # here because it takes half a second to import

    if num_won + num_lost == 0:
        return 1.0
    return float(binomtest(num_won, num_won + num_lost, 0.5, alternative="greater").pvalue)


def interval(compared: Iterable[Comparison], confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided bootstrap interval of the pooled difference, in shares, with equal tails."""
    check_share("confidence", confidence, allow_zero=False)
    low, high = quantiles(compared, (1 - confidence) / 2, (1 + confidence) / 2)
    return low, high


def quantiles(compared: Iterable[Comparison], *shares: float) -> list[float]:
    """Quantiles of the pooled difference over bootstrap resamples of the questions: for each of `shares` (0..1) the least difference
    that so large a share of the resamples does not exceed. The one of a small share `level` is a lower bound of confidence 1 - `level`.
    """
    sets = list(compared)
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


_ROUNDING = 1e-12
"""The transform's sums are this far from true at most; a tail that is exactly as heavy as asked for counts as within it."""
