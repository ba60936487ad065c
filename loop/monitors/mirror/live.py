"""Points that MLflow gets while a round runs: progress of stages, records per second, share kept, and what each training step reports.

    driver ─► LivePoints ─► mlflow-live/0003.jsonl ─► LiveSender, in the process beside the driver ─► child run of round 3

The driver only appends to a local file, so it never waits for MLflow, and an outage of any length costs no point. The sender takes the
file up where it left off. Steps of a metric only grow, so what MLflow lacks are the points above the highest step that it has; nothing is
sent twice, whoever was killed in between, and a resumed round that trains steps again adds no second point.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.training.job import TrainedStep
from loop.config.tracking_config import mlflow_key
from loop.monitors.json_lines import append_lines
from loop.monitors.monitor import StageProgress

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

FOLDER = "mlflow-live"
POINTS_PER_BATCH = 1000
"""MLflow's limit."""
_RATED = ("records", "questions", "steps")
"""Units whose rate says something."""
Point = tuple[str, float, int, int]
"""Key, value, time in milliseconds, step."""


class LivePoints:
    """Writes the points of rounds to files, a file a round."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def open(self, round: int, at: float) -> None:
        """Round `round` has started, or is continued, at `at` (seconds since the epoch of time)."""
        self._append(round, [("", 0.0, milliseconds(at), 0)])

    def add(self, round: int | None, points: Sequence[Point]) -> None:
        """Note points of a round; what is before the first round is left out."""
        if round is not None and points:
            self._append(round, points)

    def files(self) -> dict[int, Path]:
        """The files by round."""
        return {int(path.stem): path for path in sorted(self._folder.glob("*.jsonl"))}

    def forget(self, round: int) -> None:
        """Delete the file of a round that MLflow has completely."""
        (self._folder / f"{round:04d}.jsonl").unlink(missing_ok=True)

    def _append(self, round: int, points: Sequence[Point]) -> None:
        self._folder.mkdir(exist_ok=True)
        append_lines(self._folder / f"{round:04d}.jsonl", points)


def stage_points(stage: StageProgress, at: float) -> list[Point]:
    """How far a stage is at `at` (seconds since the epoch of time), by the units that are done: shares, and records per second."""
    if not stage.done:
        return []
    values: dict[str, float] = {}
    if stage.total:
        values[f"progress/{_plain(stage.name)}"] = stage.done / stage.total
    unit = "records" if "records" in stage.totals else stage.unit
    if unit in _RATED and stage.elapsed_s > 0:
        values[f"throughput/{unit}_per_s"] = stage.totals.get("records", stage.done) / stage.elapsed_s
    if stage.totals.get("records"):
        values["kept/so_far"] = stage.totals.get("kept", 0) / stage.totals["records"]
    return [(mlflow_key(key), value, milliseconds(at), stage.done) for key, value in values.items()]


def step_points(stage: StageProgress, steps: Sequence[TrainedStep]) -> list[Point]:
    """What each training step reports; controls have names of their own."""
    points: list[Point] = []
    for step in steps:
        values = {
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "tokens_per_s": step.tokens_per_s,
        }
        known = {mlflow_key(f"{_plain(stage.name)}/{name}"): value for name, value in values.items() if value is not None}
        points += [(key, value, milliseconds(step.at), step.step) for key, value in known.items()]
    return points


def started_at_ms(path: Path) -> int:
    """When the first driver began the round of a file, in milliseconds; with `overlap`, when its first records were written ahead."""
    return next((at_ms for (_, _, at_ms, _), _ in points_from(path, 0)), 0)


def points_from(path: Path, start: int) -> Iterator[tuple[Point, int]]:
    """The points of a file from byte `start` on, each with the byte behind it. Points without a key tell when a driver began the round."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):  # is being written
                return
            start += len(line)
            with suppress(ValueError):  # a killed driver left it unfinished
                key, value, at_ms, step = json.loads(line)
                yield (key, value, at_ms, step), start


@dataclass
class LiveSender:
    """Sends the points of one file to one run of MLflow. After an error a new one has to be made."""

    client: MlflowClient
    run_id: str
    path: Path
    num_bytes: int = 0
    """How much of the file has been read."""
    highest: dict[str, int] | None = None
    """The highest step of each metric that MLflow has."""

    def send(self) -> int:
        """Send what is new; returns how many points that was. Raises what MLflow raises."""
        if self.highest is None:
            self.highest = steps_of(self.client, self.run_id)
        num_sent = 0
        for batch, num_bytes in self._batches(self.highest):
            if batch:
                self.client.log_batch(self.run_id, metrics=batch)
            num_sent, self.num_bytes = num_sent + len(batch), num_bytes
        return num_sent

    def _batches(self, highest: dict[str, int]) -> Iterator[tuple[list[Metric], int]]:
        """New points in batches, each with the byte behind it."""
        from mlflow.entities import Metric

        batch: list[Metric] = []
        end = self.num_bytes
        for (key, value, at_ms, step), end in points_from(self.path, self.num_bytes):
            if key and step > highest.get(key, -1):
                highest[key] = step
                batch.append(Metric(key, value, at_ms, step))
            if len(batch) == POINTS_PER_BATCH:
                yield batch, end
                batch = []
        yield batch, end


def steps_of(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The highest step of each metric of a run."""
    data: Any = client.get_run(run_id).to_proto().data
    return {metric.key: metric.step for metric in data.metrics}


def _plain(name: str) -> str:
    """The name of a stage as a part of a key."""
    return re.sub(r"\W+", "_", name)


def milliseconds(time_s: float) -> int:
    """Seconds since the epoch of time as MLflow takes them."""
    return round(time_s * 1000)
