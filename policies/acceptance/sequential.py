"""Levels for sequential tests on the same questions that bound the errors over all of them.

Online fallback (Tian and Ramdas 2021, Statistical Methods in Medical Research 30(4), arXiv 1910.04900; for a fixed list of tests
the fallback procedure of Wiens 2003): test r of n is made at

    level_r = alpha * weight_r + (level_{r-1} if test r-1 rejected its hypothesis, else 0),     the weights adding up to 1.

The probability of at least one false rejection in the whole sequence is at most `alpha`, however the tests depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Spending = Literal["harmonic", "equal"]


def weights(num_tests: int, spending: Spending) -> list[float]:
    """The own share of alpha of each of `num_tests` tests: `equal` ones (Bonferroni), or proportional to 1/r (`harmonic`),
    which gives most to the first, where a gain is likeliest."""
    raw = [1 / test if spending == "harmonic" else 1.0 for test in range(1, num_tests + 1)]
    return [one / sum(raw) for one in raw]


def level(alpha: float, num_tests: int, spending: Spending, rejected: Sequence[bool]) -> float:
    """Level of the next test.

    Args:
        alpha: bound on the probability of any false rejection among `num_tests` tests.
        num_tests: largest number of tests.
        rejected: whether each test so far, in order, rejected its hypothesis.

    Raises:
        ValueError: all tests have been made.
    """
    if len(rejected) >= num_tests:
        raise ValueError(f"{len(rejected)} tests are made; expected fewer than num_tests {num_tests}")
    own = weights(num_tests, spending)
    now = alpha * own[0]
    for number, was_rejected in enumerate(rejected, start=1):
        now = alpha * own[number] + (now if was_rejected else 0.0)
    return now


def spent(alpha: float, num_tests: int, spending: Spending, rejected: Sequence[bool]) -> float:
    """The part of `alpha` used up by tests that rejected nothing: the sum of their levels."""
    return sum((level(alpha, num_tests, spending, rejected[:number]) for number, one in enumerate(rejected) if not one), 0.0)
