"""`vigc train` in MLflow: a parent run, a child run for each stage with its curves, data set and model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.training.checkpoint import RESULT_FILE
from loop.config.train_config import TrainConfig
from loop.monitors.mirror.facts import DataSet, dataset_inputs, defined_set
from loop.monitors.mirror.live import milliseconds
from loop.monitors.mirror.models import log_model
from loop.monitors.mirror.notes import stage_note, training_note
from loop.monitors.monitor import Ending
from loop.monitors.tracking import NOTE_TAG, RUN_TAG, Mirror, flatten_parameters, is_mirrored

if TYPE_CHECKING:
    from mlflow.entities import Metric

TRAINING, SUMMARY = "train.json", "summary.json"
"""Files of a training: its config, and the results of its stages so far."""
_ENDINGS = {
    "FINISHED": "all stages are trained",
    "FAILED": "it ended with an error; `vigc train --resume` continues it",
    "KILLED": "it was interrupted; `vigc train --resume` continues it",
}


@dataclass(frozen=True, slots=True)
class FinishedStage:
    """A trained stage as its folder and the summary of the training describe it; plain data."""

    number: int
    """From 1."""
    name: str
    ended_at: float
    """Seconds since the epoch of time."""
    seconds: float
    num_samples: int
    num_skipped_samples: int
    metrics: dict[str, float]
    held_out_losses: list[tuple[int, float]]
    """By step."""
    digest: str
    checkpoint: str
    """Its folder, as a URI."""
    data: DataSet
    parameters: dict[str, str]
    """What the config says of it, as dotted keys and text values."""

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> FinishedStage:
        losses = [(step, loss) for step, loss in document["held_out_losses"]]
        return cls(**{**document, "data": DataSet(**document["data"]), "held_out_losses": losses})


def finished_stages(config: TrainConfig, out: Path) -> list[FinishedStage]:
    """The stages that the training in `out` has finished."""
    path = out / SUMMARY
    results = json.loads(path.read_text())["stages"] if path.exists() else []
    return [_finished(config, out, number, result) for number, result in enumerate(results, 1)]


def _finished(config: TrainConfig, out: Path, number: int, result: dict[str, Any]) -> FinishedStage:
    stage, folder = config.stages[number - 1], (out / result["checkpoint"]).resolve()
    data = defined_set(stage.name, "training", stage.data, result["num_samples"])
    metrics = {
        "train/mean_loss": result["mean_loss"], "train/final_loss": result["final_loss"],
        "train/target_tokens": result["num_target_tokens"], "time/train": result["seconds"], "counts/trained_on": result["num_samples"],
        "counts/passed_over": result["num_skipped_samples"],
    }  # fmt: skip
    parameters = {"model": config.model, **flatten_parameters(stage.model_dump(mode="json"))}
    return FinishedStage(
        number, stage.name, (folder / RESULT_FILE).stat().st_mtime, result["seconds"], result["num_samples"],
        result["num_skipped_samples"], metrics, [(step, loss) for step, loss in result.get("held_out_losses", [])], result["digest"],
        folder.as_uri(), data, parameters,
    )  # fmt: skip


@dataclass(frozen=True)
class TrainingMirror(Mirror):
    """The MLflow side of a training in stages. The stages take the place of rounds, numbered from 1."""

    stage_names: Sequence[str] = ()

    def log_stages(self, stages: Sequence[FinishedStage]) -> None:
        """Mirror what is missing of the finished stages."""
        experiment_id = self._experiment_id()
        runs = self._runs(experiment_id)
        parent_id = self._open_parent(experiment_id, runs.get(None), milliseconds(_started_at(stages)))
        for stage in stages:
            child = runs.get(stage.number)
            if is_mirrored(child):
                continue
            started_ms = milliseconds(stage.ended_at - stage.seconds)
            child_id = (child or self._create_child(experiment_id, parent_id, stage.number, started_ms)).info.run_id
            self._fill_stage(experiment_id, child_id, stage)
            self.client.log_batch(parent_id, metrics=_stage_metrics(stage))
            self._complete_child(child_id, stage.ended_at)

    def close_training(self, state: Ending, stages: Sequence[FinishedStage]) -> None:
        """Set the status of the parent run, and of the stage that was running, to how the training has ended."""
        rows = [(stage.name, stage.num_samples, stage.metrics["train/final_loss"], stage.seconds) for stage in stages]
        self._end(state, training_note(self.run_id, self.uri, rows, _ENDINGS[state]))

    def child_name(self, round: int) -> str:
        return f"{round}-{self.stage_names[round - 1]}"

    def _fill_stage(self, experiment_id: str, child_id: str, stage: FinishedStage) -> None:
        points = [*_stage_metrics(stage), *_held_out_points(stage)]
        note = stage_note(stage.name, stage.num_samples, stage.num_skipped_samples, stage.metrics["train/final_loss"], stage.seconds)
        self._log_round(child_id, points, stage.parameters, {"vigc.state": "finished", NOTE_TAG: note})
        self.client.log_inputs(child_id, dataset_inputs([stage.data]))
        version = f"weights-{stage.digest[:12]}"
        tags = {RUN_TAG: self.run_id, "weight_version": version, "checkpoint": stage.checkpoint, "stage": stage.name}
        log_model(self.client, experiment_id, child_id, tags, stage.number)


def _started_at(stages: Sequence[FinishedStage]) -> float:
    return stages[0].ended_at - stages[0].seconds if stages else time.time()


def _stage_metrics(stage: FinishedStage) -> list[Metric]:
    from mlflow.entities import Metric

    ended_ms = milliseconds(stage.ended_at)
    return [Metric(name, float(value), ended_ms, stage.number) for name, value in stage.metrics.items()]


def _held_out_points(stage: FinishedStage) -> list[Metric]:
    from mlflow.entities import Metric

    ended_ms = milliseconds(stage.ended_at)
    return [Metric("train/held_out_loss", loss, ended_ms, step) for step, loss in stage.held_out_losses]
