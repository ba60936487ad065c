"""Which filter of a chain has given a reason. Records name reasons: a filter may have several of them, and filters may share one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from policies.records import Reason

REASONS: dict[str, frozenset[str]] = {
    "parsable": frozenset({Reason.UNPARSABLE}),
    "premise": frozenset({Reason.EMPTY, Reason.FALSE_PREMISE}),
    "length": frozenset({Reason.EMPTY, Reason.TOO_SHORT, Reason.TOO_LONG}),
    "duplicates": frozenset({Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE}),
    "agreement": frozenset({Reason.EMPTY, Reason.ANSWERS_DISAGREE}),
    "confidence": frozenset({Reason.EMPTY, Reason.LOW_CONFIDENCE}),
    "image_dependence": frozenset({Reason.EMPTY, Reason.IMAGE_INDEPENDENT}),
    "grounding": frozenset({Reason.EMPTY, Reason.UNGROUNDED}),
    "short_answer": frozenset({Reason.EMPTY, Reason.LOW_CONFIDENCE}),
    "basis": frozenset({Reason.EMPTY, Reason.NO_BASIS}),
    "held_out_questions": frozenset({Reason.HELD_OUT_QUESTION}),
}
"""What each filter of this project may say, by its name. One that is not here is a user's, and may say everything that these do not."""
DEDUPLICATION = "deduplication"
"""Stands for the search for duplicates over the whole round, which comes after the chain."""
_BEFORE = frozenset({Reason.UNREADABLE_IMAGE, Reason.HELD_OUT_IMAGE})
"""Reasons of records that no filter sees."""
_REPEATED = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class Judge:
    """A filter of a chain, or several that share a reason and cannot be told apart by it."""

    name: str
    """`confidence`, or `confidence or short_answer`."""
    reasons: frozenset[str] | None
    """Those that it may give; None for what no other one gives."""


def judges(chain: Sequence[str]) -> list[Judge]:
    """The filters of a chain, given their names, in order; behind them the search for duplicates."""
    found: list[Judge] = []
    seen: set[str] = set()
    for name in chain:
        known = REASONS.get(name) or REASONS.get(_REPEATED.sub("", name))
        # a record that is empty for one filter never reaches the next
        reasons = None if known is None else known - ({Reason.EMPTY} & seen)
        seen |= reasons or set()
        place = next((place for place, one in enumerate(found) if _overlap(one.reasons, reasons)), len(found))
        found[place : place + 1] = [_joined([*found[place : place + 1], Judge(name, reasons)])]
    return found if REASONS["duplicates"] <= seen else [*found, Judge(DEDUPLICATION, REASONS["duplicates"])]


def rejected_by(reason: str, chain: Sequence[Judge]) -> int:
    """The place in the chain of what gave the reason; -1 if it was given before any filter saw the record."""
    if reason in _BEFORE:
        return -1
    named = (place for place, judge in enumerate(chain) if judge.reasons is not None and reason in judge.reasons)
    others = (place for place, judge in enumerate(chain) if judge.reasons is None)
    return next(named, next(others, -1))


def _overlap(one: frozenset[str] | None, other: frozenset[str] | None) -> bool:
    return one is other if one is None or other is None else bool(one & other)


def _joined(judges: Sequence[Judge]) -> Judge:
    """Several judges as one; the reasons of the first tell whose they are."""
    reasons = None if judges[0].reasons is None else frozenset().union(*(judge.reasons or () for judge in judges))
    return Judge(" or ".join(judge.name for judge in judges), reasons)
