"""The records of a round: the parts that hold them, checked for completeness, their counts, and which are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

import pyarrow as pa

from actors.shards import Shard
from loop.errors import DamagedFileError, IncompleteRoundError
from loop.store.commits import FilterCount
from loop.store.run_store import PartReceipt, Store
from loop.store.selected import SELECTED, SelectedRows, accepted_columns, index_of, selected_rows
from policies.counts import RecordCounts
from policies.training.selection import SelectionPolicy, columns_of, selected


def finished_parts(store: Store, shards: Iterable[Shard]) -> dict[str, PartReceipt]:
    """The parts that an earlier driver has finished, by shard name. Each is verified against its receipt once. Parts without counts,
    which an earlier version wrote, are made again."""
    planned = list(shards)
    found = store.finished_parts(planned[0].round, [shard.name for shard in planned]) if planned else {}
    return {name: part for name, part in found.items() if "counts" in part.extra}


def complete_parts(shards: Sequence[Shard], parts: Mapping[str, PartReceipt]) -> list[PartReceipt]:
    """The parts of a round in shard order: one per planned shard, with one record per task.

    Raises:
        IncompleteRoundError: a shard is missing, or its part does not match the plan.
    """
    problems = [problem for shard in shards if (problem := _problem(shard, parts.get(shard.name)))]
    if problems:
        raise IncompleteRoundError(shards[0].round, len(shards), problems)
    return [parts[shard.name] for shard in shards]


def _problem(shard: Shard, part: PartReceipt | None) -> str:
    """Why a shard does not count as complete; empty if it does."""
    if part is None:
        return f"{shard.name} is missing"
    if PurePosixPath(part.path).stem != shard.name:
        return f"{shard.name} has the part {part.path}"
    if part.num_rows != len(shard.tasks):
        return f"{part.path} has {part.num_rows} record(s) for {len(shard.tasks)} task(s)"
    return ""


def select(
    store: Store, policy: SelectionPolicy, index: int, parts: Sequence[PartReceipt], duplicates: PartReceipt | None = None
) -> tuple[SelectedRows, PartReceipt]:
    """The rows to train on, and part `selected`, which holds them.

    Raises:
        IncompleteRoundError: a part no longer matches its receipt.
        PolicyError: the selection policy raised an error or broke its contract.
    """
    done = store.finished_part(index, SELECTED)
    if done is None:
        with still_whole(index, parts):
            columns = accepted_columns(store, parts, columns_of(policy), duplicates)
        done = store.write_part(index, SELECTED, index_of(columns).filter(_chosen(policy, columns)))
    return selected_rows(store, parts, done), done


@contextmanager
def still_whole(index: int, parts: Sequence[PartReceipt]) -> Iterator[None]:
    """Read the parts of a round. Raises `IncompleteRoundError` where one of them no longer matches its receipt."""
    try:
        yield
    except DamagedFileError as error:
        if error.path not in {part.path for part in parts}:
            raise
        problem = f"{error.path} is damaged (expected {error.expected}, found {error.found})"
        raise IncompleteRoundError(index, len(parts), [problem]) from error


def _chosen(policy: SelectionPolicy, columns: pa.Table) -> pa.Array:
    """The mask of a policy, which does not see where a record is stored."""
    return selected(policy, columns.drop_columns(["part", "row"]))


def record_counts(parts: Iterable[PartReceipt]) -> RecordCounts:
    """Counts of a round's records."""
    return RecordCounts.total(RecordCounts.read(part.extra["counts"]) for part in parts)


def counts_of(records: RecordCounts, num_selected: int) -> dict[str, int]:
    """Counts of a round as its commit record has them, including rejections by reason."""
    return {
        "generated": records.generated,
        "accepted": records.accepted,
        "trained_on": num_selected,
        "set_aside_images": records.unreadable_images + records.held_out_images,
        **records.by_reason,
    }


def filter_counts(parts: Iterable[PartReceipt]) -> list[FilterCount]:
    """Records seen and kept by each filter over all shards, in the order of the chain."""
    total: dict[str, list[int]] = {}
    for part in parts:
        for name, seen, kept in part.extra["filters"]:
            sums = total.setdefault(name, [0, 0])
            sums[0] += seen
            sums[1] += kept
    return [FilterCount(filter=name, seen=seen, kept=kept) for name, (seen, kept) in total.items()]
