"""Duplicates in rounds of many records: what is found, and what it costs.

    python -m benchmarks.duplicates [--records 10000 100000 200000 1800000]

Synthetic records (a question of 12 words, an answer of 60) in shards of 1,800 pass through the code of a round: their keys are made as a
filter makes them, and `deduplicate` searches the parts. 4.6 % of the records are near duplicates of an earlier one in any shard: one
word of 72 is replaced, which leaves a similarity of 0.92 in most cases. `templated` records are the hard case: 20 templates with three
words to fill in, so that each record shares most of its shingles with a twentieth of all others without being a near duplicate.
`datasketch` is MinHashLSH with the same bands, shingles and exact comparison, as the filter `duplicates` had it before; it runs on up
to 200,000 records. Each measurement is a process of its own.
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
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import argument_parser, cost, write_results

RECORDS_PER_SHARD = 1800
_PLANTED = 9_237 / 200_000
_NUM_QUESTION_WORDS, _NUM_ANSWER_WORDS = 12, 60
_NUM_TEMPLATES, _NUM_SLOTS = 20, 3
_MOST_FOR_DATASKETCH = 200_000
_WORDS = [f"word{number}" for number in range(8_000)]


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    texts: str
    num_records: int
    cpu_seconds: float
    peak_mib: float
    """Growth of the process's memory over what it held before."""
    recall: float | None = None
    """Of the records that are near duplicates of an earlier one."""
    detail: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "duplicates.json")
    parser.add_argument("--records", type=int, nargs="*", default=[10_000, 100_000, 200_000, 1_800_000])
    parser.add_argument("--templated", type=int, nargs="*", default=[20_000, 200_000], help="records of the hard case")
    parser.add_argument("--measure", choices=list(MEASUREMENTS), help=argparse.SUPPRESS)
    parser.add_argument("--texts", choices=["varied", "templated"], default="varied", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        json.dump(MEASUREMENTS[args.measure](args.folder, args.texts, args.records[0]), sys.stdout)
        return
    rows = [row for num in args.records for row in measured("varied", num)]
    rows += [row for num in args.templated for row in measured("templated", num)]
    show(rows)
    write_results(args.out, rows)


def measured(texts: str, num: int) -> list[Row]:
    """All measurements of one size, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in MEASUREMENTS:
            if name == "datasketch" and (num > _MOST_FOR_DATASKETCH or texts == "templated"):
                continue
            command = [sys.executable, "-m", "benchmarks.duplicates", "--measure", name, "--texts", texts, "--folder", folder]
            done = subprocess.run([*command, "--records", str(num)], stdout=subprocess.PIPE, text=True, check=True, timeout=7200)
            rows.append(Row(name, texts, num, **json.loads(done.stdout)))
            print(rows[-1], flush=True)
    return rows


def show(rows: list[Row]) -> None:
    table = Table("what", "texts", "records", "CPU s", "peak MiB", "recall", "", box=None)
    for row in rows:
        recall = "" if row.recall is None else f"{row.recall:.4f}"
        detail = ", ".join(f"{name} {value}" for name, value in row.detail.items())
        table.add_row(row.what, row.texts, f"{row.num_records:,}", f"{row.cpu_seconds:.1f}", f"{row.peak_mib:.0f}", recall, detail)
    Console().print(table)


# ---- the records


def pairs(texts: str, num: int) -> Iterator[tuple[str, str, bool]]:
    """Questions, answers, and whether they are near duplicates of earlier ones."""
    return _varied(num) if texts == "varied" else _templated(num)


def _varied(num: int) -> Iterator[tuple[str, str, bool]]:
    draw = random.Random(7)
    made: list[int] = []
    for number in range(num):
        if made and draw.random() < _PLANTED:
            words = _drawn(made[draw.randrange(len(made))])
            words[draw.randrange(len(words))] = "replaced"
            yield *_split(words), True
        else:
            made.append(number)
            yield *_split(_drawn(number)), False


def _templated(num: int) -> Iterator[tuple[str, str, bool]]:
    """Two records of a template that differ in one of three words have a similarity of 0.92; those that differ in two, one of 0.84."""
    draw, seen = random.Random(7), set[tuple[int, int, str, str]]()
    for number in range(num):
        words, filled = _drawn(number % _NUM_TEMPLATES), draw.choices(_WORDS, k=_NUM_SLOTS)
        for slot, word in enumerate(filled):
            words[(slot + 1) * len(words) // (_NUM_SLOTS + 1)] = word
        shared = {(number % _NUM_TEMPLATES, slot, filled[slot - 1], filled[slot]) for slot in range(_NUM_SLOTS)}
        yield *_split(words), bool(shared & seen)
        seen |= shared


def _drawn(number: int) -> list[str]:
    return random.Random(number).choices(_WORDS, k=_NUM_QUESTION_WORDS + _NUM_ANSWER_WORDS)


def _split(words: list[str]) -> tuple[str, str]:
    return " ".join(words[:_NUM_QUESTION_WORDS]), " ".join(words[_NUM_QUESTION_WORDS:])


# ---- the measurements


def keys(folder: Path, texts: str, num: int) -> dict[str, Any]:
    """Write the parts of a round; what is measured is how a filter makes their keys, in one process."""
    from loop.store.run_store import RunInfo, Store
    from policies.counts import RecordCounts
    from policies.filtering.near_duplicates import TextSimilarity
    from policies.filtering.stored_keys import with_keys
    from policies.records import Record, to_table

    similarity, seconds = TextSimilarity(), 0.0
    made = pairs(texts, num)
    with Store.create(folder / "run", RunInfo(run_id="duplicates", config={})).locked() as store:
        for shard in range(-(-num // RECORDS_PER_SHARD)):
            first = shard * RECORDS_PER_SHARD
            records = [
                Record(f"r1-s{shard:05d}-{row:04d}", 1, shard, f"{first + row:09d}.jpg", "detail", "", 0, question=question, answer=answer,
                       accepted=True)
                for row, (question, answer, _) in zip(range(min(RECORDS_PER_SHARD, num - first)), made, strict=False)
            ]  # fmt: skip
            table = to_table(records)
            started = time.process_time()
            table = with_keys(table, records, similarity)
            seconds += time.process_time() - started
            counts = RecordCounts(generated=len(records), accepted=len(records))
            store.write_part(1, f"records-{shard:05d}", table, {"filters": [], "counts": counts.stored})
    return {"cpu_seconds": seconds, "peak_mib": 0.0, "detail": {"microseconds per record": round(1e6 * seconds / num)}}


def search(folder: Path, texts: str, num: int) -> dict[str, Any]:
    """The stage `deduplicate` of the driver, with its reading of all parts."""
    from loop.config.run_config import load_config
    from loop.monitors.progress import RunProgress
    from loop.run.contents import Run
    from loop.run.stages.deduplication import deduplicate
    from loop.setup.assembly import build_policies
    from loop.setup.data import build_data
    from loop.store.run_store import Store

    config = load_config(Path("loop/recipes/shapes.yaml"), ["deduplication={scope: all, across: [round]}"])
    policies, progress = build_policies(config), RunProgress(Console(file=io.StringIO()))
    with Store.open(folder / "run").locked() as store:
        run = Run(config, policies, store, "duplicates", progress, build_data(config), [])
        parts = [part for shard in range(-(-num // RECORDS_PER_SHARD)) if (part := store.finished_part(1, f"records-{shard:05d}"))]
        found: dict[str, Any] = {}

        def driver() -> str:
            part = deduplicate(run, 1, parts)
            assert part is not None
            found.update(part=part)
            return ""

        started = time.perf_counter()
        measured_cost = cost(driver)
        detail = {"seconds": round(time.perf_counter() - started, 1), "found": found["part"].num_rows, **found["part"].extra}
        table = store.read_part(found["part"])
        flagged = set((table["part"].to_numpy() * RECORDS_PER_SHARD + table["row"].to_numpy()).tolist())
    detail = {name: value for name, value in detail.items() if name not in ("filters", "counts")}
    return {**measured_cost, "recall": _recall(texts, num, flagged), "detail": detail}


def datasketch(folder: Path, texts: str, num: int) -> dict[str, Any]:
    """MinHashLSH over the same texts: keys and search in one."""
    from datasketch import MinHash, MinHashLSH

    from policies.filtering.near_duplicates import TextSimilarity

    similarity = TextSimilarity()
    (num_bands, num_rows), flagged = similarity.bands, set[int]()
    new_hash = MinHash(num_perm=num_bands * num_rows)
    index = MinHashLSH(similarity.threshold, num_perm=num_bands * num_rows, params=(num_bands, num_rows))
    sets: dict[Hashable, frozenset[str]] = {}

    def whole() -> str:
        for number, (question, answer, _) in enumerate(pairs(texts, num)):
            shingles = frozenset(similarity.shingles(f"{question} {answer}"))
            minhash = new_hash.copy()
            minhash.update_batch([shingle.encode() for shingle in shingles])
            others = (sets[other] for other in index.query(minhash))
            if any(len(shingles & other) >= similarity.threshold * len(shingles | other) for other in others):
                flagged.add(number)
                continue
            index.insert(number, minhash)
            sets[number] = shingles
        return ""

    started = time.process_time()
    for _ in pairs(texts, num):
        pass
    making = time.process_time() - started
    found = cost(whole)
    found["cpu_seconds"] -= making
    return {**found, "recall": _recall(texts, num, flagged), "detail": {"found": len(flagged)}}


def _recall(texts: str, num: int, flagged: set[int]) -> float | None:
    repeated = np.flatnonzero([is_repeated for *_, is_repeated in pairs(texts, num)]).tolist()
    return sum(one in flagged for one in repeated) / len(repeated) if repeated else None


MEASUREMENTS: dict[str, Callable[[Path, str, int], dict[str, Any]]] = {"keys": keys, "search": search, "datasketch": datasketch}


if __name__ == "__main__":
    main()
