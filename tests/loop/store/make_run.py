"""A run to test on: its info, records, commits, a checkpoint, and a way to damage a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from loop.store.commits import FileEntry, RoundCommit, RoundState
from loop.store.run_store import CheckpointReceipt, RunInfo, Store
from policies.records import Record, to_table

RUN = RunInfo(run_id="run-1", config={"seed": 7, "rate": 1e-05})


def records(num: int = 5, shard: int = 0) -> pa.Table:
    return to_table(
        Record(f"r1-s{shard}-{i}", 1, shard, f"image-{i}", "conversation", "Ask.", 3, question=f"What is {i}?", sentences=("A.", "B."))
        for i in range(num)
    )


def commit_of(store: Store, round: int = 0, files: list[FileEntry] | None = None, **changes: Any) -> RoundCommit:
    values: dict[str, Any] = {
        "run_id": "run-1", "round": round, "state": RoundState.BASELINE, "epoch": store.epoch, "started_at": 1.0, "committed_at": 2.0,
        "champion": "r0", "champion_path": "checkpoints/base", "metrics": {"accuracy/near": 0.5}, "files": files or [],
    }  # fmt: skip
    return RoundCommit(**{**values, **changes})


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def checkpoint(store: Store, name: str, content: bytes = b"weights") -> CheckpointReceipt:
    folder = store.checkpoint_dir(name)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "sub").mkdir()
    (folder / "sub" / "config.json").write_text("{}")
    return store.publish_checkpoint(folder, name)
