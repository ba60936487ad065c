"""The monitors `ray`, `tensorboard` and `wandb`: live points, and the numbers of committed rounds. The last two need these packages."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from actors.training.job import TrainedStep
from loop.monitors.mirror.live import Point, milliseconds, stage_points, step_points
from loop.monitors.mirror.metrics import round_values
from loop.monitors.monitor import Ending, RunFacts, StageProgress
from loop.store.commits import RoundCommit


class _Board:
    """What both have in common; `write` shows points of a round."""

    def __init__(self) -> None:
        self._committed: set[int] = set()

    def write(self, round: int, points: Sequence[Point]) -> None:
        raise NotImplementedError

    def round_started(self, round: int, num_rounds: int) -> None:
        """Shown by its points."""

    def stage_progressed(self, stage: StageProgress) -> None:
        if stage.round is not None:
            self.write(stage.round, stage_points(stage, time.time()))

    def steps_trained(self, stage: StageProgress, steps: Sequence[TrainedStep]) -> None:
        if stage.round is not None:
            self.write(stage.round, step_points(stage, steps))

    def round_committed(self, commits: Sequence[RoundCommit]) -> None:
        commit = commits[-1]
        if commit.round not in self._committed:
            self._committed.add(commit.round)
            at_ms = milliseconds(commit.committed_at)
            self.write(-1, [(name, value, at_ms, commit.round) for name, value in round_values(commit).items()])


class RayMetrics(_Board):
    """Implements `Monitor`: gauges that Ray exports to Prometheus from the driver's node, for `cluster/launch/grafana.json`.

    `accuracy/near` becomes `ray_vigc_accuracy{of="near"}`. All gauges have the label `run`, the run's name, and `round`, which is empty for
    the numbers of committed rounds. What happens before the driver has connected to Ray is left out.
    """

    def __init__(self, facts: RunFacts) -> None:
        super().__init__()
        self._run = facts.name
        self._gauges: dict[str, Any] = {}

    def write(self, round: int, points: Sequence[Point]) -> None:
        import ray
        from ray.util.metrics import Gauge

        if not ray.is_initialized():
            return
        for key, value, _, _ in points:
            group, _, of = key.partition("/")
            name = "vigc_" + re.sub(r"\W", "_", group)
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, f"{group} of a run of vigc-loop", tag_keys=("run", "round", "of"))
            self._gauges[name].set(value, {"run": self._run, "round": str(round) if round >= 0 else "", "of": of})

    def run_ended(self, ending: Ending, patience_s: float) -> None:
        """Gauges keep their last values until the driver's process ends."""


class TensorBoard(_Board):
    """Implements `Monitor`: events in `tensorboard` of the run folder, a subfolder for each round, and one for the loop."""

    package = "tensorboard"
    """What has to be installed."""

    def __init__(self, facts: RunFacts) -> None:
        super().__init__()
        self._folder = facts.folder / "tensorboard"
        self._writers: dict[int, Any] = {}

    def write(self, round: int, points: Sequence[Point]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if round not in self._writers:
            self._writers[round] = SummaryWriter(str(self._folder / (f"round-{round:04d}" if round >= 0 else "loop")))
        for key, value, at_ms, step in points:
            self._writers[round].add_scalar(key, value, step, at_ms / 1000)

    def run_ended(self, ending: Ending, patience_s: float) -> None:
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases(_Board):
    """Implements `Monitor`: one W&B run, continued by later drivers, whose names begin with `round-N/` for live points."""

    package = "wandb"

    def __init__(self, facts: RunFacts) -> None:
        super().__init__()
        wandb: Any = import_module("wandb")
        self._run = wandb.init(
            project=facts.name, id=facts.run_id, name=facts.run_id, resume="allow", config=dict(facts.parameters), dir=str(facts.folder)
        )

    def write(self, round: int, points: Sequence[Point]) -> None:
        prefix = f"round-{round}/" if round >= 0 else ""
        for key, value, _, step in points:
            self._run.log({f"{prefix}{key}": value, f"{prefix}step": step})

    def run_ended(self, ending: Ending, patience_s: float) -> None:
        self._run.finish(exit_code=0 if ending == "FINISHED" else 1)
