"""Who follows a run: a monitor that fails ends nothing, and the file of JSON lines has everything once."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from actors.training.job import Progress, TrainedStep
from loop.config.run_config import load_config
from loop.errors import UserError
from loop.monitors.json_lines import EVENTS, JsonLines, read_events
from loop.monitors.mirroring import check_monitors, monitored
from loop.monitors.monitor import Ending, Monitors, RunFacts, StageProgress
from loop.monitors.progress import RunProgress
from loop.setup.routing import record_images
from loop.store.commits import RoundCommit
from loop.store.documents import RunInfo
from loop.store.run_store import Store
from tests.loop.monitors.test_tracking import COMMITS
from tests.loop.run.small_run import write_config


@dataclass
class Broken:
    """A monitor of somebody's own, which fails at the first stage."""

    facts: RunFacts | None = None
    heard: list[str] = field(default_factory=list)

    def round_started(self, round: int, num_rounds: int) -> None:
        self.heard.append(f"round {round} of {num_rounds}")

    def stage_progressed(self, stage: StageProgress) -> None:
        self.heard.append(stage.name)
        raise KeyError("password=hunter2")

    def steps_trained(self, stage: StageProgress, steps: Sequence[TrainedStep]) -> None: ...

    def round_committed(self, commits: Sequence[RoundCommit]) -> None: ...

    def run_ended(self, ending: Ending, patience_s: float) -> None:
        self.heard.append(ending)


class Lacking(Broken):
    package = "absent_package"


def drive(monitors: Monitors, first_step: int = 1) -> None:
    """A round as a driver goes through it."""
    with RunProgress(Console(file=io.StringIO()), monitors=monitors) as progress:
        progress.round(1, 2)
        with progress.stage("train", total=4) as stage:
            for step in range(first_step, 5):
                done = tuple(TrainedStep(number, 10.0 + number, 0.5, 1e-3, None, None) for number in range(first_step, step + 1))
                progress.trained(stage, Progress(step, 4, 0.5, steps=done))
    monitors.round_committed(COMMITS[:2])
    monitors.run_ended("FINISHED")


def test_a_monitor_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, facts = Broken(), RunFacts("x-1", "x", "runs/x", tmp_path, {})
    drive(Monitors({"own": broken, "jsonl": JsonLines(facts)}))
    assert broken.heard == ["round 1 of 2", "train"]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "monitor own is left out from now on: KeyError" in warning.getMessage()
    assert "hunter2" not in warning.getMessage()
    assert [event["event"] for event in read_events(tmp_path / EVENTS)][-1] == "run_ended"


def test_a_file_of_events_has_every_step_and_every_round_once(tmp_path: Path) -> None:
    facts = RunFacts("x-1", "x", "runs/x", tmp_path, {})
    drive(Monitors({"jsonl": JsonLines(facts)}))
    events = list(read_events(tmp_path / EVENTS))
    assert [event["step"] for event in events if event["event"] == "step_trained"] == [1, 2, 3, 4]
    assert [event["round"] for event in events if event["event"] == "round_committed"] == [0, 1]
    (last,) = [event for event in events if event["event"] == "stage_progressed" and event["is_over"]]
    assert (last["round"], last["name"], last["done"], last["total"]) == (1, "train", 4, 4)
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"event": "torn')
    drive(Monitors({"jsonl": JsonLines(facts)}), first_step=3)
    counted = Counter(event["event"] for event in read_events(tmp_path / EVENTS))
    assert (counted["round_committed"], counted["round_started"], counted["run_ended"]) == (2, 2, 2)


def test_the_monitors_of_a_config_are_made_and_unknown_ones_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_config(tmp_path, monitors=["jsonl", f"{__name__}:Broken", f"{__name__}:drive"], tracking={"enabled": False})
    config = load_config(path)
    check_monitors(config)
    store = Store.create(tmp_path / "run", RunInfo(run_id="x-1", config=config.model_dump(mode="json")))
    with monitored(config, store, record_images) as monitors:
        monitors.round_started(1, 2)
    events = [event["event"] for event in read_events(tmp_path / "run" / EVENTS)]
    assert events == ["round_started", "run_ended"]
    assert "drive is left out: " in caplog.text
    with pytest.raises(UserError, match=r"monitors\.0: unknown monitor; expected one of mlflow, jsonl, .* \(given: 'mlfow'\)"):
        load_config(path, ["monitors=[mlfow]"])
    with pytest.raises(UserError, match="monitors: cannot load monitor 'absent:Name'"):
        check_monitors(load_config(path, ["monitors=['absent:Name']"]))
    with pytest.raises(UserError, match="needs the package absent_package, which is not installed; run `pip install absent_package`"):
        check_monitors(load_config(path, [f"monitors='{__name__}:Lacking'"]))
