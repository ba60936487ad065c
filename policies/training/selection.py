"""Selection: which of a round's accepted records are trained on.

A policy scores records one by one, where they are filtered, and then chooses among all of the round by columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from policies.checks import check_share
from policies.columns import SELECTION_COLUMNS, compute
from policies.errors import PolicyError, running
from policies.metrics import view_agreement
from policies.records import RECORD_SCHEMA, Record
from policies.registry import Registry, missing_members


class SelectionPolicy(Protocol):
    """Chooses among the accepted records of a round.

    A policy that reads other columns than `policies.columns.SELECTION_COLUMNS` names them in an attribute `columns`.
    """

    def score(self, record: Record) -> float | None:
        """The `score` of an accepted record, higher is better. Called once per record, in the process that filters its shard."""
        ...

    def select(self, records: pa.Table) -> Sequence[bool] | np.ndarray | pa.Array | pa.ChunkedArray:
        """One bool for each row, true for the records to train on.

        Args:
            records: the round's accepted records in shard order, as columns.
        """
        ...


def _faults(policy: Any) -> list[str]:
    """Why an object is not a selection policy, one text per fault."""
    faults = missing_members(policy, SelectionPolicy)
    if unknown := sorted(set(getattr(policy, "columns", ())) - {*RECORD_SCHEMA.names, *SELECTION_COLUMNS}):
        faults.append(f"its columns {unknown} do not exist; expected some of {sorted(RECORD_SCHEMA.names)}")
    return faults


SELECTION_POLICIES: Registry[SelectionPolicy] = Registry("selection policy", _faults)


def score_of(record: Record) -> float:
    """Mean log-probability per token (nats, at most 0) plus the share of view answers that agree (0..1).

    The model's confidence and its consistency across views fail independently, so they are added. Missing measurements count 0.
    """
    return (record.mean_logprob or 0.0) + (view_agreement(record) or 0.0)


def selected(policy: SelectionPolicy, records: pa.Table) -> pa.Array:
    """The mask that a policy returns on `records`, checked: [rows], bool.

    Raises:
        PolicyError: the policy raised an error, or returned something other than one bool per row.
    """
    label = f"selection policy {type(policy).__name__!r}"
    with running(label):
        found: Any = policy.select(records)
        mask = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else pa.array(found)
    if not pa.types.is_boolean(mask.type) and len(mask):
        raise PolicyError(label, f"returned {mask.type} values; expected one bool for each record")
    if len(mask) != records.num_rows or mask.null_count:
        nulls = f" with {mask.null_count} nulls" if mask.null_count else ""
        raise PolicyError(label, f"returned {len(mask)} values{nulls} for {records.num_rows} records; expected one bool for each")
    return mask.cast(pa.bool_())


def columns_of(policy: SelectionPolicy) -> tuple[str, ...]:
    """Further columns of the records that a policy reads."""
    return tuple(name for name in getattr(policy, "columns", ()) if name not in SELECTION_COLUMNS)


class _Scored:
    """Base of the selections below: `score_of`."""

    def score(self, record: Record) -> float | None:
        return score_of(record)


@SELECTION_POLICIES.register("all")
@dataclass(frozen=True)
class SelectAll(_Scored):
    """Every accepted record."""

    def select(self, records: pa.Table) -> np.ndarray:
        return np.ones(records.num_rows, dtype=bool)


@SELECTION_POLICIES.register("top_share")
@dataclass(frozen=True, kw_only=True)
class TopShare(_Scored):
    """The best-scored `share` (above 0, up to 1) of each question type, at least one; ties go to the lower `record_id`.

    With `balance_types` every type contributes as many as the smallest one.
    """

    share: float = 0.5
    balance_types: bool = False

    def __post_init__(self) -> None:
        check_share("share", self.share, allow_zero=False)

    def select(self, records: pa.Table) -> np.ndarray:
        keys = [("question_type", "ascending"), ("score", "descending"), ("record_id", "ascending")]
        order = compute.sort_indices(records, sort_keys=keys).to_numpy()
        counts = records.group_by("question_type").aggregate([([], "count_all")]).sort_by("question_type")["count_all"].to_numpy()
        taken = [max(1, round(self.share * int(count))) for count in counts]
        if self.balance_types:
            taken = [min(taken, default=0)] * len(taken)
        mask = np.zeros(records.num_rows, dtype=bool)
        for start, num in zip(np.cumsum(counts) - counts, taken, strict=True):
            mask[order[start : start + num]] = True
        return mask
