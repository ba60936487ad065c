"""Rounds of many records: what select, mix and counts cost the driver, what a training set costs a rank, and what exports cost.

    python -m benchmarks.scale [--records 10000 100000 1800000] [--history 4] [--answer-words 40]

The records are synthetic (realistic lengths: an answer of 40 words, four answers on views) and pass through the code of a round: parts
with receipts, `select`, the mixing policy, the files of a training set, a rank's order and reading, and exports. Each measurement is a
process of its own. `as objects` reads the same parts as `Record`s, which is how all of this was done before, up to 100,000 records. Exports
of records are about one small image, so that they show what the records cost; exports of photos are measured beside the first size.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.common import argument_parser, cost, write_results
from benchmarks.exports import export_photos, export_records
from benchmarks.synthetic import Size, last_parts, write
from policies.columns import compute
from policies.training.selection import SelectAll

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
    parser.add_argument("--answer-words", type=int, default=40, help="words of an answer; 180 make a column of 3 million exceed 2 GiB")
    parser.add_argument("--what", nargs="+", choices=list(MEASUREMENTS), help="measure these alone; write is always done")
    parser.add_argument("--measure", choices=list(MEASUREMENTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        size = Size(args.records[0], args.history, args.answer_words)
        json.dump(MEASUREMENTS[args.measure](args.folder, size), sys.stdout)
        return
    rows = []
    for num in args.records:
        for history in sorted({0, args.history if num == max(args.records) else 0}):
            photos = () if rows else _PHOTOS
            names = [name for name in args.what or MEASUREMENTS if name in photos or name not in _PHOTOS]
            rows += measured(Size(num, history, args.answer_words), names)
    show(rows)
    write_results(args.out, rows)


def measured(size: Size, names: Sequence[str]) -> list[Row]:
    """Measurements of one size, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in dict.fromkeys(["write", *names]):
            if name == "as objects" and (size.num_records > _MOST_AS_OBJECTS or size.num_earlier_rounds):
                continue
            command = [sys.executable, "-m", "benchmarks.scale", "--measure", name, "--folder", folder, *size.options]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
            found = json.loads(done.stdout)
            if found:
                rows.append(Row(name, size.num_records, size.num_earlier_rounds, **found))
                print(rows[-1], flush=True)
    return rows


def show(rows: list[Row]) -> None:
    table = Table("what", "records", "earlier rounds", "CPU s", "peak MiB", "", box=None)
    for row in rows:
        cells = f"{row.num_records:,}", str(row.num_earlier_rounds), f"{row.cpu_seconds:.2f}", f"{row.peak_mib:.0f}", row.detail
        table.add_row(row.what, *cells)
    Console().print(table)


# ---- the measurements


def select_and_mix(folder: Path, size: Size) -> dict[str, Any]:
    """Counts, selection, mix, and the files of the training set: everything the driver does with a round's records."""
    from loop.config.run_config import load_config
    from loop.monitors.progress import RunProgress
    from loop.run.contents import Run
    from loop.run.stages.records import record_counts, select
    from loop.run.stages.training_set import generated_so_far, training_set
    from loop.setup.assembly import build_policies
    from loop.setup.data import build_data
    from loop.store.run_store import Store

    config = load_config(Path("loop/recipes/shapes.yaml"), [])
    policies, progress = build_policies(config), RunProgress(Console(file=io.StringIO()))
    with Store.open(folder / "run").locked() as store:
        run = Run(config, policies, store, "scale", progress, build_data(config), store.commits())
        assert run.seed_samples
        index, parts = size.num_earlier_rounds + 1, last_parts(store, size)

        def driver() -> str:
            counts = record_counts(parts)
            selected, part = select(store, policies.selection, index, parts)
            samples = training_set(run, index, generated_so_far(run, index, selected), size.num_records, folder / "samples").samples
            assert len(samples) == size.num_records
            return (
                f"{counts.accepted:,} records accepted, {len(selected):,} selected, {len(samples):,} samples drawn; "
                f"part selected has {part.num_bytes / 2**20:.1f} MiB"
            )

        return cost(driver)


class LongAnswers(SelectAll):
    """A selection that reads all answers of a round: a column that may have more than 2 GiB."""

    columns = ("answer",)

    def select(self, records: pa.Table) -> pa.ChunkedArray:
        return compute.greater(compute.utf8_length(records["answer"]), 100)


def select_by_answers(folder: Path, size: Size) -> dict[str, Any]:
    """`select` with such a policy."""
    from loop.run.stages.records import select
    from loop.store.run_store import Store

    with Store.open(folder / "run").locked() as store:

        def driver() -> str:
            selected, _ = select(store, LongAnswers(), size.num_earlier_rounds + 2, last_parts(store, size))
            return f"{len(selected):,} selected"

        return cost(driver)


def as_objects(folder: Path, size: Size) -> dict[str, Any]:
    """The same with all records of the round as objects, as it was done before."""
    from loop.store.run_store import Store
    from policies.counts import RecordCounts
    from policies.generation.instructions import vig_target
    from policies.records import TrainingSample, to_table
    from policies.training.selection import score_of

    store, rng, num = Store.open(folder / "run"), np.random.default_rng(1), size.num_records
    parts = last_parts(store, size)

    def driver() -> str:
        records = [record for part in parts for record in store.read_records(part)]
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


def rank(folder: Path, size: Size) -> dict[str, Any]:
    """What a rank holds of the training set: its order, and the samples of some steps."""
    from actors.training.order import global_batches
    from actors.training.samples import StoredSamples, lengths_of

    samples = StoredSamples(folder / "samples", "")

    def read() -> str:
        order = global_batches(lengths_of(samples), _BATCH_SIZE, size.num_records // _BATCH_SIZE, 1, length_grouping=True)
        started = time.perf_counter()
        for batch in islice(order, _NUM_STEPS_READ):
            assert all(samples[index].turns for index in batch)
        return f"{1000 * (time.perf_counter() - started) / _NUM_STEPS_READ:.1f} ms to read {_BATCH_SIZE} samples"

    before = _own_bytes()
    found = cost(read)
    return {**found, "peak_mib": (_own_bytes() - before) / 2**20}


MEASUREMENTS: dict[str, Callable[[Path, Size], dict[str, Any]]] = {
    "write": write,
    "select, mix, counts": select_and_mix,
    "select by answers": select_by_answers,
    "as objects": as_objects,
    "rank": rank,
    "export as parquet": partial(export_records, format="parquet"),
    "export as llava": partial(export_records, format="llava"),
    "export of photos, one process": partial(export_photos, workers=1),
    "export of photos, two processes": partial(export_photos, workers=2),
}
_PHOTOS = [name for name in MEASUREMENTS if name.startswith("export of photos")]
"""Measured once: their number does not depend on the size."""


def _own_bytes() -> int:
    """Resident memory of this process without pages of mapped files, which the system drops when it needs memory."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


if __name__ == "__main__":
    main()
