"""Rounds of many records: what select, mix and counts cost the driver, and what a training set costs a rank.

    python -m benchmarks.scale [--records 10000 100000 1800000] [--history 4]

The records are synthetic (realistic lengths: an answer of 40 words, four answers on views) and pass through the code of a round: parts
with receipts, `select`, the mixing policy, the files of a training set, and a rank's order and reading. Each measurement is a process of
its own. `as objects` reads the same parts as `Record`s, which is how all of this was done before, up to 100,000 records.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.common import argument_parser, cost, write_results

RECORDS_PER_SHARD = 1800
_WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "small",
    "large",
    "ring",
    "star",
    "square",
    "left",
    "right",
    "above",
    "below",
    "of",
    "is",
    "there",
    "beside",
    "and",
    "image",
    "corner",
    "three",
    "two",
    "one",
]
_MOST_AS_OBJECTS = 100_000
_BATCH_SIZE = 64
_NUM_STEPS_READ = 20


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    num_records: int
    num_earlier_rounds: int
    cpu_seconds: float
    peak_mib: float
    """Growth of the process's memory over what it held before: the peak of all, and for a rank at the end what is not a page of a
    mapped file."""
    detail: str = ""


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "scale.json")
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_800_000])
    parser.add_argument("--history", type=int, default=4, help="accepted rounds before the largest one, measured beside none")
    parser.add_argument("--measure", choices=list(MEASUREMENTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        json.dump(MEASUREMENTS[args.measure](args.folder, args.records[0], args.history), sys.stdout)
        return
    rows = []
    for num in args.records:
        for history in {0, args.history if num == max(args.records) else 0}:
            rows += measured(num, history)
    show(rows)
    write_results(args.out, rows)


def measured(num: int, history: int) -> list[Row]:
    """All measurements of one size, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in MEASUREMENTS:
            if name == "as objects" and (num > _MOST_AS_OBJECTS or history):
                continue
            command = [sys.executable, "-m", "benchmarks.scale", "--measure", name, "--folder", folder, "--records", str(num)]
            done = subprocess.run([*command, "--history", str(history)], stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
            found = json.loads(done.stdout)
            if found:
                rows.append(Row(name, num, history, **found))
                print(rows[-1], flush=True)
    return rows


def show(rows: list[Row]) -> None:
    table = Table("what", "records", "earlier rounds", "CPU s", "peak MiB", "", box=None)
    for row in rows:
        cells = f"{row.num_records:,}", str(row.num_earlier_rounds), f"{row.cpu_seconds:.2f}", f"{row.peak_mib:.0f}", row.detail
        table.add_row(row.what, *cells)
    Console().print(table)


# ---- the measurements


def write(folder: Path, num: int, history: int) -> dict[str, Any]:
    """Write the parts of all rounds, which is not measured."""
    from loop.store.commits import RoundCommit, RoundState
    from loop.store.run_store import RunInfo, Store
    from loop.store.selected import SELECTED, accepted_columns, index_of
    from policies.counts import RecordCounts

    base = _base_shard()
    with Store.create(folder / "run", RunInfo(run_id="scale", config={})).locked() as store:
        for index in range(1, history + 2):
            parts = []
            for shard in range(-(-num // RECORDS_PER_SHARD)):
                table = _shard(base, index, shard).slice(0, min(RECORDS_PER_SHARD, num - shard * RECORDS_PER_SHARD))
                counts = RecordCounts(generated=table.num_rows, accepted=table["accepted"].to_pylist().count(True))
                parts.append(store.write_part(index, f"records-{shard:05d}", table, {"filters": [], "counts": counts.stored}))
            if index <= history:
                parts.append(store.write_part(index, SELECTED, index_of(accepted_columns(store, parts, ()))))
            files = [part.entry for part in parts]
            (folder / f"round-{index}.json").write_text(
                RoundCommit(
                    run_id="scale", round=index, state=RoundState.ACCEPTED, epoch=1, started_at=0, committed_at=0, champion="c",
                    champion_path="checkpoints/c", files=files, counts={"trained_on": num},
                ).model_dump_json()
            )  # fmt: skip
    return {}


def select_and_mix(folder: Path, num: int, history: int) -> dict[str, Any]:
    """Counts, selection, mix, and the files of the training set: everything the driver does with a round's records."""
    from loop.config.run_config import load_config
    from loop.monitors.progress import RunProgress
    from loop.run.contents import Run
    from loop.run.stages.records import record_counts, select
    from loop.run.stages.training_set import generated_so_far, training_set
    from loop.setup.assembly import build_data, build_policies
    from loop.store.commits import RoundCommit
    from loop.store.run_store import Store

    config = load_config(Path("loop/recipes/shapes.yaml"), [])
    policies, progress = build_policies(config), RunProgress(Console(file=io.StringIO()))
    commits = [RoundCommit.model_validate_json((folder / f"round-{index}.json").read_text()) for index in range(1, history + 1)]
    with Store.open(folder / "run").locked() as store:
        run = Run(config, policies, store, "scale", progress, build_data(config), commits)
        assert run.seed_samples
        index = history + 1
        parts = [store.finished_part(index, f"records-{shard:05d}") for shard in range(-(-num // RECORDS_PER_SHARD))]

        def driver() -> str:
            found = [part for part in parts if part is not None]
            counts = record_counts(found)
            selected, _ = select(store, policies.selection, index, found)
            samples = training_set(run, index, generated_so_far(run, index, selected), num, folder / "samples").samples
            assert len(samples) == num
            return f"{counts.accepted:,} records accepted, {len(selected):,} selected, {len(samples):,} samples drawn"

        return cost(driver)


def as_objects(folder: Path, num: int, history: int) -> dict[str, Any]:
    """The same with all records of the round as objects, as it was done before."""
    from loop.store.run_store import Store
    from policies.counts import RecordCounts
    from policies.generation.instructions import vig_target
    from policies.records import TrainingSample, to_table
    from policies.training.selection import score_of

    store, rng = Store.open(folder / "run"), np.random.default_rng(1)
    parts = [store.finished_part(1, f"records-{shard:05d}") for shard in range(-(-num // RECORDS_PER_SHARD))]

    def driver() -> str:
        records = [record for part in parts if part is not None for record in store.read_records(part)]
        counts = RecordCounts.of(records)
        selected = [replace(record, score=score_of(record), trained_on=True) for record in records if record.accepted]
        to_table(selected)
        routed = [replace(record, image_id=f"set0|{record.image_id}") for record in selected]
        drawn = (routed[place] for _ in range(-(-num // len(routed))) for place in rng.permutation(len(routed)))
        samples = [
            TrainingSample(one.image_id, ((one.instruction, vig_target(one.question, one.answer)),), one.record_id, one.question_type)
            for one in islice(drawn, num)
        ]
        return f"{counts.accepted:,} records accepted, {len(selected):,} selected, {len(samples):,} samples drawn"

    return cost(driver)


def rank(folder: Path, num: int, history: int) -> dict[str, Any]:
    """What a rank holds of the training set: its order, and the samples of some steps."""
    from actors.training.order import global_batches
    from actors.training.samples import StoredSamples, lengths_of

    samples = StoredSamples(folder / "samples", "")

    def read() -> str:
        order = global_batches(lengths_of(samples), _BATCH_SIZE, num // _BATCH_SIZE, 1, length_grouping=True)
        started = time.perf_counter()
        for batch in islice(order, _NUM_STEPS_READ):
            assert all(samples[index].turns for index in batch)
        return f"{1000 * (time.perf_counter() - started) / _NUM_STEPS_READ:.1f} ms to read {_BATCH_SIZE} samples"

    before = _own_bytes()
    found = cost(read)
    return {**found, "peak_mib": (_own_bytes() - before) / 2**20}


MEASUREMENTS: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "write": write,
    "select, mix, counts": select_and_mix,
    "as objects": as_objects,
    "rank": rank,
}


def _own_bytes() -> int:
    """Resident memory of this process without pages of mapped files, which the system drops when it needs memory."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


def _base_shard() -> pa.Table:
    from policies.records import Record, to_table

    draw = random.Random(7)

    def text(num_words: int) -> str:
        return " ".join(draw.choices(_WORDS, k=num_words))

    records = [
        Record(
            "", 1, 0, "", draw.choice(("conversation", "detail", "complex")), text(12), row, text(50), text(10), text(40), -3.0, 60,
            answer=text(40), sentences=(text(20), text(20)), sentence_logprobs=(-1.0, -1.0), answer_logprob=-draw.random(),
            answer_num_tokens=50, view_answers=tuple(text(10) for _ in range(4)), agreement=0.5, accepted=draw.random() < 0.8,
            score=draw.random(), original_correct=True, answer_correct=True,
        )
        for row in range(RECORDS_PER_SHARD)
    ]  # fmt: skip
    return to_table(records)


def _shard(base: pa.Table, index: int, shard: int) -> pa.Table:
    """The base with ids and scores of its own."""
    rows = range(base.num_rows)
    changed = {
        "record_id": [f"r{index}-s{shard:05d}-{row:04d}" for row in rows],
        "image_id": [f"train2017/{shard:06d}{row:06d}.jpg" for row in rows],
        "score": np.random.default_rng([index, shard]).random(base.num_rows),
    }
    for name, column in changed.items():
        place = base.schema.get_field_index(name)
        base = base.set_column(place, base.schema.field(name), pa.array(column))
    return base


if __name__ == "__main__":
    main()
