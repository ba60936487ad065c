"""The records of a round: the parts that hold them, checked for completeness, and their counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from actors.shards import Shard
from loop.errors import DamagedFileError, IncompleteRoundError
from loop.store.commits import FilterCount
from loop.store.run_store import PartReceipt, Store
from policies.errors import running
from policies.metrics import count_reasons
from policies.records import Record, to_table
from policies.training.selection import SelectionPolicy


def finished_parts(store: Store, shards: Iterable[Shard]) -> dict[str, PartReceipt]:
    """The parts that an earlier driver has finished, by shard name. Each is verified against its receipt once."""
    return {shard.name: part for shard in shards if (part := store.finished_part(shard.round, shard.name)) is not None}


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
    store: Store, policy: SelectionPolicy, index: int, parts: Sequence[PartReceipt]
) -> tuple[list[Record], list[Record], PartReceipt]:
    """Returns all records of the round, those to train on, and the part that holds the latter.

    Raises:
        IncompleteRoundError: a part no longer matches its receipt.
    """
    try:
        records = [record for part in parts for record in store.read_records(part)]
    except DamagedFileError as error:
        problem = f"{error.path} is damaged (expected {error.expected}, found {error.found})"
        raise IncompleteRoundError(index, len(parts), [problem]) from error
    part = store.finished_part(index, "selected")
    if part is not None:
        return records, store.read_records(part), part
    with running(f"selection policy {type(policy).__name__!r}"):
        chosen = [record for record in policy.select([record for record in records if record.accepted]) if record.trained_on]
    return records, chosen, store.write_part(index, "selected", to_table(chosen))


def counts_of(records: Sequence[Record], selected: Sequence[Record]) -> dict[str, int]:
    """Counts of a round, including rejections by reason."""
    return {
        "generated": len(records),
        "accepted": sum(record.accepted for record in records),
        "trained_on": len(selected),
        "set_aside_images": len({record.image_id for record in records if "unreadable_image" in record.reasons}),
        **count_reasons(records),
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
