"""Runs of synthetic records of realistic length, and what a measurement costs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loop.store.commits import FileEntry, RoundCommit, RoundState
from loop.store.documents import PartReceipt
from loop.store.run_store import RunInfo, Store
from loop.store.selected import SELECTED, accepted_columns, index_of
from policies.counts import RecordCounts
from policies.records import Record, to_table

RECORDS_PER_SHARD = 1800
_WORDS = [
    "a", "the", "red", "blue", "small", "large", "ring", "star", "square", "left", "right", "above", "below", "of", "is", "there", "beside",
    "and", "image", "corner", "three", "two", "one",
]  # fmt: skip


@dataclass(frozen=True)
class Size:
    """What is measured."""

    num_records: int
    num_earlier_rounds: int
    answer_words: int

    @property
    def num_shards(self) -> int:
        return -(-self.num_records // RECORDS_PER_SHARD)

    @property
    def options(self) -> list[str]:
        """It, as options of this program."""
        return [f"--records={self.num_records}", f"--history={self.num_earlier_rounds}", f"--answer-words={self.answer_words}"]


def write(folder: Path, size: Size) -> dict[str, Any]:
    """Write the parts of all rounds, which is not measured. Rounds before the last one are committed."""
    base = base_shard(size.answer_words)
    with Store.create(folder / "run", RunInfo(run_id="scale", config={})).locked() as store:
        store.commit(commit_of(0, store.epoch, []))
        for index in range(1, size.num_earlier_rounds + 2):
            parts = []
            for shard in range(size.num_shards):
                table = shard_of(base, index, shard).slice(0, min(RECORDS_PER_SHARD, size.num_records - shard * RECORDS_PER_SHARD))
                counts = RecordCounts(generated=table.num_rows, accepted=table["accepted"].to_pylist().count(True))
                parts.append(store.write_part(index, f"records-{shard:05d}", table, {"filters": [], "counts": counts.stored}))
            if index <= size.num_earlier_rounds:
                parts.append(store.write_part(index, SELECTED, index_of(accepted_columns(store, parts, ()))))
                store.commit(commit_of(index, store.epoch, [part.entry for part in parts]))
    return {}


def commit_of(index: int, epoch: int, files: Sequence[FileEntry]) -> RoundCommit:
    """The commit record of a round with these files."""
    state = RoundState.ACCEPTED if index else RoundState.BASELINE
    return RoundCommit(
        run_id="scale", round=index, state=state, epoch=epoch, started_at=0, committed_at=0, champion="c", champion_path="checkpoints/c",
        files=list(files),
    )  # fmt: skip


def last_parts(store: Store, size: Size) -> list[PartReceipt]:
    """The parts of records of the last round."""
    found = [store.finished_part(size.num_earlier_rounds + 1, f"records-{shard:05d}") for shard in range(size.num_shards)]
    return [part for part in found if part is not None]


def base_shard(answer_words: int) -> pa.Table:
    draw = random.Random(7)

    def text(num_words: int) -> str:
        return " ".join(draw.choices(_WORDS, k=draw.randint(num_words // 2, num_words * 3 // 2)))

    records = [
        Record(
            "", 1, 0, "", draw.choice(("conversation", "detail", "complex")), text(12), row, text(answer_words + 10), text(10),
            text(answer_words), -3.0, 60, answer=text(answer_words), sentences=(text(answer_words // 2), text(answer_words // 2)),
            sentence_logprobs=(-1.0, -1.0), answer_logprob=-draw.random(), answer_num_tokens=50,
            view_answers=tuple(text(10) for _ in range(4)), agreement=0.5, accepted=draw.random() < 0.8, score=draw.random(),
            original_correct=True, answer_correct=True,
        )
        for row in range(RECORDS_PER_SHARD)
    ]  # fmt: skip
    return to_table(records)


def shard_of(base: pa.Table, index: int, shard: int) -> pa.Table:
    """The rows of the base in another order, with ids and scores of their own."""
    rows, draw = range(base.num_rows), np.random.default_rng([index, shard])
    base = base.take(pa.array(draw.permutation(base.num_rows)))
    changed = {
        "record_id": [f"r{index}-s{shard:05d}-{row:04d}" for row in rows],
        "image_id": [f"train2017/{shard:06d}{row:06d}.jpg" for row in rows],
        "score": draw.random(base.num_rows),
    }
    for name, column in changed.items():
        place = base.schema.get_field_index(name)
        base = base.set_column(place, base.schema.field(name), pa.array(column))
    return base
