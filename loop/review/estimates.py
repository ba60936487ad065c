"""How well the verdict and each filter agree with people: precision and recall, with 95 % intervals.

The records that people see are not a random sample of a round: some of every verdict and reason are shown, however rare. So every labelled
record is weighed with the number of records that it stands for: those of its stratum (round and verdict or reason), divided by how many of
them are labelled; a record that is shown because it is an extreme stands for itself. This is the Hajek estimator of a stratified sample.
Strata without a label are not part of an estimate.

An interval is Wilson's (1927), with the effective number of labels `(sum w)^2 / sum w^2` (Kish 1965) in place of their number; for equal
weights that is their number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loop.monitors.mirror.review_queue import LABEL
from loop.review.labels import Reviewed
from policies.filtering.attribution import Judge, rejected_by
from policies.metrics import wilson

VERDICT = "verdict"


@dataclass(frozen=True, slots=True)
class Share:
    """A share 0..1 with its 95 % interval; None where no label tells."""

    value: float | None
    low: float | None
    high: float | None
    num_labels: int
    """Behind it."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge against people."""

    name: str
    precision: Share
    """Of the verdict: accepted records that people call right. Of a filter: records it rejected that people do not call right."""
    recall: Share
    """Of the verdict: right records that were accepted. Of a filter: those that it rejected of the others that it saw."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """A labelled record and how many records it stands for."""

    record: Reviewed
    weight: float

    @property
    def right(self) -> bool:
        return self.record.label == LABEL.right


def weighed(labelled: Sequence[Reviewed]) -> list[Weighed]:
    """The labelled records with their weights."""
    numbers = Counter(map(_stratum, labelled))
    return [Weighed(one, one.stratum_size / numbers[_stratum(one)] if one.stratum else 1.0) for one in labelled]


def num_unseen(records: Sequence[Reviewed]) -> int:
    """How many records are in strata that are shown but have no label yet."""
    labelled = {_stratum(one) for one in records if one.label is not None}
    return sum({_stratum(one): one.stratum_size for one in records if _stratum(one) not in labelled}.values())


def _stratum(one: Reviewed) -> tuple[int, str]:
    return one.round, one.stratum or one.record_id


def agreements(records: Sequence[Weighed], chain: Sequence[Judge]) -> list[Agreement]:
    """The verdict, and each filter of the chain, against people."""
    places = {one.record.record_id: _place(one.record, chain) for one in records}

    def of_filter(place: int) -> Agreement:
        seen = [one for one in records if places[one.record.record_id] >= place]

        def rejects(one: Weighed) -> bool:
            return places[one.record.record_id] == place

        return Agreement(chain[place].name, share(filter(rejects, seen), lambda one: not one.right), share(_bad(seen), rejects))

    verdict = Agreement(
        VERDICT,
        share((one for one in records if one.record.accepted), lambda one: one.right),
        share((one for one in records if one.right), lambda one: one.record.accepted),
    )
    return [verdict, *map(of_filter, range(len(chain)))]


def _bad(records: Sequence[Weighed]) -> list[Weighed]:
    return [one for one in records if not one.right]


def _place(record: Reviewed, chain: Sequence[Judge]) -> int:
    """The place of the filter that rejected a record; behind all of them if it was accepted."""
    return len(chain) if record.accepted else rejected_by(record.reason, chain)


def share(records: Iterable[Weighed], holds: Callable[[Weighed], bool]) -> Share:
    """The weighted share of records for which something holds."""
    counted = list(records)
    total = math.fsum(one.weight for one in counted)
    if not total:
        return Share(None, None, None, 0)
    value = math.fsum(one.weight for one in counted if holds(one)) / total
    return Share(value, *wilson(value, total**2 / math.fsum(one.weight**2 for one in counted)), len(counted))
