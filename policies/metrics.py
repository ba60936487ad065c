"""Metrics: plain functions from texts, flags and records to numbers. Shares are 0..1; an empty input gives 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from policies.answers.yes_no import YES, parse_yes_no
from policies.records import Reason, Record

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


def correctness(records: Sequence[Record]) -> dict[str, float]:
    """Shares of right answers among records whose truth is known; a key without such records is left out.

    `correct_before` is over VIG's own answers and `correct_after` over the corrected ones, of the same records: those with a
    question and both truths known. A question that was not answered because its premise was refuted counts only in the first.
    `correct_kept` is over the corrected answers of accepted records.
    """
    known = [r for r in records if r.question and r.original_correct is not None and r.answer_correct is not None]
    marks = {
        "correct_before": [bool(r.original_correct) for r in known],
        "correct_after": [bool(r.answer_correct) for r in known if r.answer],
        "correct_kept": [r.answer_correct for r in records if r.accepted and r.answer_correct is not None],
    }
    return {name: share(marked) for name, marked in marks.items() if marked}


def count_reasons(records: Iterable[Record]) -> dict[str, int]:
    """Number of records by `rejected_REASON`, in the order of `Reason`, then reasons of user-defined filters; a record counts once
    for each of its reasons."""
    counts = Counter(str(reason) for record in records for reason in set(record.reasons))
    names = [*map(str, Reason), *sorted(counts.keys() - set(map(str, Reason)))]
    return {f"rejected_{name}": counts[name] for name in names if counts[name]}
