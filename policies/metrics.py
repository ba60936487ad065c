"""Metrics: plain functions from texts, flags and records to numbers. Shares are 0..1; an empty input gives 0."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from policies.answers.yes_no import YES, parse_yes_no
from policies.records import Record

_Z = 1.959964
"""The normal quantile of a two-sided 95 %."""
_FINAL_PUNCTUATION = ".,;:!?…。！？ "  # noqa: RUF001


def normalise(text: str) -> str:
    """`text` for comparing answers: lower case, single spaces, no final punctuation."""
    return " ".join(text.lower().split()).rstrip(_FINAL_PUNCTUATION)


def exact_match(prediction: str, answer: str) -> bool:
    """Whether two texts are the same up to white space."""
    return prediction.split() == answer.split()


def says_yes(text: str) -> bool:
    """Whether an answer to a yes-or-no question is a yes; False if it is neither, see `policies.answers.yes_no`."""
    return parse_yes_no(text) == YES


def view_agreement(record: Record) -> float | None:
    """Share of the answers on perturbed views that equal the corrected answer after `normalise`; None without views."""
    if not record.view_answers:
        return None
    answer = normalise(record.answer)
    return share(normalise(view) == answer for view in record.view_answers)


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams, over all texts together (Li et al. 2016, arXiv 1510.03055)."""
    if n < 1:
        raise ValueError(f"n is {n}; expected 1 or more")
    words = (text.lower().split() for text in texts)
    grams = Counter(tuple(found[i : i + n]) for found in words for i in range(len(found) - n + 1))
    return len(grams) / grams.total() if grams else 0.0


def mean_words(texts: Iterable[str]) -> float:
    """Mean number of words, split at white space."""
    lengths = [len(text.split()) for text in texts]
    return sum(lengths) / len(lengths) if lengths else 0.0


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of at least one score, each 0..1: Wilson's (1927) for right and wrong answers, else that of a normal
    mean."""
    count = len(scores)
    mean = math.fsum(scores) / count
    if all(score in (0.0, 1.0) for score in scores):
        return wilson(mean, count)
    variance = math.fsum((score - mean) ** 2 for score in scores) / max(1, count - 1)
    half = _Z * math.sqrt(variance / count)
    return max(0.0, mean - half), min(1.0, mean + half)


def wilson(share: float, num: float) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a share among `num` draws, a number above 0 that need not be whole."""
    z2 = _Z**2 / num
    center = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / num + z2 / (4 * num))
    return max(0.0, center - half), min(1.0, center + half)


def share(flags: Iterable[bool]) -> float:
    """Share of flags that are true."""
    known = list(flags)
    return sum(known) / len(known) if known else 0.0
