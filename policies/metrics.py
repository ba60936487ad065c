"""Metrics: plain functions from texts, flags and records to numbers. Shares are 0..1; an empty input gives 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from policies.answers.yes_no import YES, parse_yes_no
from policies.records import Record

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


def share(flags: Iterable[bool]) -> float:
    """Share of flags that are true."""
    known = list(flags)
    return sum(known) / len(known) if known else 0.0
