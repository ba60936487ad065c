"""The monitor `jsonl`: what happens in a run as JSON lines, in `events.jsonl` of the run folder.

Each line has `event` and `at`, in seconds since the epoch of time. A driver that continues a run appends. If it trains steps again, the
last line about a step counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.training.job import TrainedStep
from loop.monitors.monitor import Ending, RunFacts, StageProgress
from loop.store.commits import RoundCommit

EVENTS = "events.jsonl"


class JsonLines:
    """Implements `Monitor`."""

    def __init__(self, facts: RunFacts) -> None:
        self._path = facts.folder / EVENTS
        self._committed = {event["round"] for event in read_events(self._path) if event["event"] == "round_committed"}

    def round_started(self, round: int, num_rounds: int) -> None:
        self._write("round_started", round=round, num_rounds=num_rounds)

    def stage_progressed(self, stage: StageProgress) -> None:
        self._write("stage_progressed", **asdict(stage))

    def steps_trained(self, stage: StageProgress, steps: Sequence[TrainedStep]) -> None:
        self._append([{"event": "step_trained", "round": stage.round, "stage": stage.name, **asdict(step)} for step in steps])

    def round_committed(self, commits: Sequence[RoundCommit]) -> None:
        for commit in commits:
            if commit.round not in self._committed:
                self._committed.add(commit.round)
                self._write("round_committed", **commit.model_dump(mode="json", exclude={"files", "schema_version", "epoch"}))

    def run_ended(self, ending: Ending, patience_s: float) -> None:
        self._write("run_ended", ending=ending)

    def _write(self, event: str, **facts: Any) -> None:
        self._append([{"event": event, "at": time.time(), **facts}])

    def _append(self, events: Sequence[dict[str, Any]]) -> None:
        append_lines(self._path, events)


def append_lines(path: Path, documents: Sequence[Any]) -> None:
    """Append JSON documents, one a line. A line that a killed process has left unfinished is ended first."""
    text = "".join(json.dumps(document) + "\n" for document in documents)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())


def read_events(path: Path) -> Iterator[Any]:
    """The documents of a file of JSON lines; a line that is not complete is passed over. None if there is no such file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:  # a killed process left it unfinished
                continue
