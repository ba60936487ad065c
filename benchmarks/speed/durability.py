"""The cost of durability: a round's writes by the store, compared with plain writes and reads of the same bytes.

    python -m benchmarks.speed.durability [--folder FOLDER] [--out benchmarks/results/durability.json]

A round of the demo recipe: 12 shards of 134 records, the selected records, 1,400 predictions, the losses, a checkpoint of the embedded
model, the commit record, and the pruning of an older checkpoint. The durable side uses fsync, SHA-256, seals, a fence before every
write, and verifies every file against its receipt when reading; the plain side does none of this. `--folder` selects the disk.
The share is relative to the round's seconds in `benchmarks/results/demo.json`.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import argument_parser, timed, write_results
from loop.config.run_config import EMBEDDED_MODEL
from loop.run.retention import check_needed
from loop.store.commits import RoundCommit, RoundState
from loop.store.run_store import RunInfo, Store
from policies.records import Record, to_table

NUM_SHARDS, NUM_RECORDS, NUM_SELECTED, NUM_PREDICTIONS, NUM_LOSSES = 12, 134, 400, 1400, 200
REPEATS = 9
_WORDS = ("circle", "square", "star", "red", "green", "small", "left", "above", "image", "there", "what", "color", "no", "yes")


def main() -> None:
    """Measure both sides in turn and write the results."""
    parser = argument_parser(__doc__, "durability.json")
    parser.add_argument("--folder", type=Path, help="where to write; default the system's temp folder")
    parser.add_argument("--demo", type=Path, default=Path("benchmarks/results/demo.json"))
    args = parser.parse_args()
    round_s = statistics.median(stages["round"] for stages in json.loads(args.demo.read_text())["stage_seconds"])
    with tempfile.TemporaryDirectory(prefix="vigc-durability-", dir=args.folder) as folder:
        durable_s, plain_s, start_s = measure(Path(folder))
    cost_s = durable_s - plain_s
    report = {
        "durable_s": round(durable_s, 4),
        "plain_s": round(plain_s, 4),
        "cost_s": round(cost_s, 4),
        "round_s": round_s,
        "share_of_a_round": round(cost_s / round_s, 5),
        "check_at_a_start_s": round(start_s, 4),
    }
    write_results(args.out, report)
    print(json.dumps(report, indent=1))


def measure(folder: Path) -> tuple[float, float, float]:
    """Seconds of a durable round, of a plain one, and of the check before a driver's first round. The fastest of nine, because other
    load only adds time."""
    shards = [_records(NUM_RECORDS, shard) for shard in range(NUM_SHARDS)]
    selected, predictions = _records(NUM_SELECTED, NUM_SHARDS), _records(NUM_PREDICTIONS, NUM_SHARDS + 1)
    durable, plain, starts = list[float](), list[float](), list[float]()
    with Store.create(folder / "run", RunInfo(run_id="run", config={})).locked() as store:
        durable_round(store, 0, shards, selected, predictions)
        for index in range(1, REPEATS + 1):
            timed(durable, lambda index=index: durable_round(store, index, shards, selected, predictions))
            timed(plain, lambda index=index: plain_round(folder / f"plain-{index}", shards, selected, predictions))
        commits = store.commits()
        for _ in range(REPEATS):
            timed(starts, lambda: check_needed(store, commits))
    return min(durable), min(plain), min(starts)


def durable_round(store: Store, index: int, shards: list[pa.Table], selected: pa.Table, predictions: pa.Table) -> None:
    """Write and read what `loop.run.round` does in a round."""
    parts = [store.write_part(index, f"records-{number:05d}", table) for number, table in enumerate(shards)]
    for part in parts:
        store.read_part(part)
    parts.append(store.write_part(index, "selected", selected))
    name = f"round-{index:04d}"
    scratch = store.checkpoint_dir(name)
    shutil.copytree(EMBEDDED_MODEL, scratch, dirs_exist_ok=True)
    checkpoint = store.publish_checkpoint(scratch, name)
    parts.append(store.write_json_part(index, "training", {"losses": [0.5] * NUM_LOSSES}))
    parts.append(store.write_part(index, "predictions", predictions))
    store.read_part(parts[-1])
    state = RoundState.ACCEPTED if index else RoundState.BASELINE
    store.commit(
        RoundCommit(
            run_id="run", round=index, state=state, epoch=store.epoch, started_at=0.0, committed_at=time.time(), champion=name,
            champion_path=checkpoint.path, files=[*(part.entry for part in parts), *checkpoint.files],
        )
    )  # fmt: skip
    if index > 1:
        store.prune_checkpoint(f"checkpoints/round-{index - 1:04d}", "for the benchmark")


def plain_round(folder: Path, shards: list[pa.Table], selected: pa.Table, predictions: pa.Table) -> None:
    """Write and read the same files plainly."""
    tables = {f"records-{number:05d}": table for number, table in enumerate(shards)} | {"selected": selected, "predictions": predictions}
    folder.mkdir()
    for name, table in tables.items():
        pq.write_table(table.combine_chunks(), folder / f"{name}.parquet", compression="zstd")
        pq.read_table(folder / f"{name}.parquet")
    shutil.copytree(EMBEDDED_MODEL, folder / "checkpoint")
    (folder / "training.json").write_text(json.dumps({"losses": [0.5] * NUM_LOSSES}))
    (folder / "commit.json").write_text(json.dumps({"files": sorted(tables)}))
    shutil.rmtree(folder / "checkpoint")


def _records(num: int, shard: int) -> pa.Table:
    draw = random.Random(shard)

    def text(num_words: int) -> str:
        return " ".join(draw.choices(_WORDS, k=num_words))

    return to_table(
        Record(
            f"r1-s{shard}-{row}", 1, shard, f"shapes-{draw.random()}", "conversation", text(20), row, question=text(9),
            sentences=(text(8),), original_answer=text(8), answer=text(8), answer_logprob=-draw.random(),
        )
        for row in range(num)
    )  # fmt: skip


if __name__ == "__main__":
    main()
