"""Selection: which of a round's accepted records are trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from policies.checks import check_share
from policies.metrics import view_agreement
from policies.records import Record
from policies.registry import Registry


class SelectionPolicy(Protocol):
    """Chooses among records."""

    def select(self, records: Sequence[Record]) -> list[Record]:
        """The same records in the same order, `score` set and `trained_on` true for the chosen. Records that are not accepted
        pass through unchanged."""
        ...


SELECTION_POLICIES: Registry[SelectionPolicy] = Registry("selection policy", SelectionPolicy)


def score_of(record: Record) -> float:
    """Mean log-probability per token (nats, at most 0) plus the share of view answers that agree (0..1).

    The model's confidence and its consistency across views fail independently, so they are added. Missing measurements count 0.
    """
    return (record.mean_logprob or 0.0) + (view_agreement(record) or 0.0)


@SELECTION_POLICIES.register("all")
@dataclass(frozen=True)
class SelectAll:
    """Every accepted record."""

    def select(self, records: Sequence[Record]) -> list[Record]:
        return [replace(r, score=score_of(r), trained_on=True) if r.accepted else r for r in records]


@SELECTION_POLICIES.register("top_share")
@dataclass(frozen=True, kw_only=True)
class TopShare:
    """The best-scored `share` (above 0, up to 1) of each question type, at least one; ties go to the lower `record_id`.

    With `balance_types` every type contributes as many as the smallest one.
    """

    share: float = 0.5
    balance_types: bool = False

    def __post_init__(self) -> None:
        check_share("share", self.share, allow_zero=False)

    def select(self, records: Sequence[Record]) -> list[Record]:
        scored = [replace(r, score=score_of(r)) if r.accepted else r for r in records]
        by_type: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for record in scored:
            if record.accepted:
                by_type[record.question_type].append((-score_of(record), record.record_id))
        sizes = {name: max(1, round(self.share * len(ranked))) for name, ranked in by_type.items()}
        if self.balance_types:
            sizes = dict.fromkeys(sizes, min(sizes.values(), default=0))
        chosen = {record_id for name, ranked in by_type.items() for _, record_id in sorted(ranked)[: sizes[name]]}
        return [replace(r, trained_on=r.accepted and r.record_id in chosen) for r in scored]
