"""The chain of filters: how verdicts on records are gathered and counted.

No single signal tells a right answer from a wrong one; independent signals multiply, so filters come in a chain. A filter sees
only what its predecessors kept, and a rejected record stays in the data with its first reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

from policies.correction import CorrectionPolicy
from policies.records import Reason, Record


class MissingMeasurementError(ValueError):
    """A filter reads what the correction policy does not measure."""


class FilterPolicy(Protocol):
    """One reason to keep or reject records."""

    @property
    def name(self) -> str:
        """Name under which its counts are kept."""
        ...

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        """A reason against each record, in order, or None to keep it.

        `records` are those of one shard that survived so far; all tasks of an image are in the same shard.
        """
        ...


@runtime_checkable
class MeasuringFilter(Protocol):
    """A filter that needs certain settings of the correction policy."""

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        """What to change in the correction settings, one text per change; empty when the filter can work."""
        ...


class StageCount(NamedTuple):
    """How many records a filter saw and kept."""

    name: str
    seen: int
    kept: int


@dataclass(frozen=True, slots=True)
class ChainResult:
    """All records of a shard, judged, in their order; and the counts in the order of the chain."""

    records: list[Record]
    counts: list[StageCount]


class FilterChain:
    """Filters one after the other."""

    def __init__(self, policies: Sequence[FilterPolicy]) -> None:
        self.policies = tuple(policies)

    def apply(self, records: Sequence[Record]) -> ChainResult:
        """Judge the records of one shard: survivors become `accepted`, the others carry their first reason.

        Records that come with reasons (`UNREADABLE_IMAGE`) stay rejected, unseen by any filter.

        Raises:
            ValueError: a filter gave another number of verdicts than it was given records.
        """
        reasons: dict[int, Reason] = {}
        alive = [index for index, record in enumerate(records) if not record.reasons]
        counts = []
        for policy in self.policies:
            verdicts = policy.judge([records[index] for index in alive])
            if len(verdicts) != len(alive):
                raise ValueError(f"filter {policy.name!r} gave {len(verdicts)} verdicts on {len(alive)} records; expected one each")
            reasons |= {index: Reason(verdict) for index, verdict in zip(alive, verdicts, strict=True) if verdict is not None}
            counts.append(StageCount(policy.name, len(alive), len(alive) - len(verdicts) + verdicts.count(None)))
            alive = [index for index in alive if index not in reasons]
        survivors = set(alive)
        judged = [replace(record, accepted=index in survivors) for index, record in enumerate(records)]
        for index, reason in reasons.items():
            judged[index] = judged[index].rejected(reason)
        return ChainResult(judged, counts)


def check_measurements(filters: Iterable[FilterPolicy], correction: CorrectionPolicy) -> None:
    """Hold the filters against the correction settings, before a run starts.

    Raises:
        MissingMeasurementError: a filter reads what is not measured; the message names the settings to change.
    """
    faults = [
        f"filter {policy.name!r} needs {change}"
        for policy in filters
        if isinstance(policy, MeasuringFilter)
        for change in policy.missing(correction)
    ]
    if faults:
        raise MissingMeasurementError("; ".join(faults))
