"""What MLflow shows while a round runs: each point once, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from actors.training.job import TrainedStep
from loop.monitors.mirror.live import LivePoints, points_from, stage_points, step_points
from loop.monitors.mirror.sending import LiveStreams
from loop.monitors.monitor import StageProgress
from loop.monitors.tracking import Mirror
from tests.loop.monitors.test_tracking import COMMITS, Seen, champion_folder, samples

WRITING = StageProgress(1, "generate, correct, filter", 3, 12, "shards", {"records": 60, "kept": 15}, 20.0, is_over=False)
TRAINING = StageProgress(1, "train", 1, 6, "steps", {}, 1.0, is_over=False)


def steps(first: int, last: int, at: float = 1000.0) -> list[TrainedStep]:
    return [TrainedStep(number, at + number, 1 / number, 1e-3, 0.5, 200.0) for number in range(first, last + 1)]


def losses(seen: Seen) -> list[tuple[int, float, int]]:
    (child,) = seen.children
    return seen.history(child, "train/loss")


def test_a_stage_and_a_step_become_points_in_readable_groups() -> None:
    assert {key: value for key, value, _, _ in stage_points(WRITING, 5.0)} == {
        "progress/generate_correct_filter": 0.25, "throughput/records_per_s": 3.0, "kept/so_far": 0.25,
    }  # fmt: skip
    assert {(at_ms, step) for _, _, at_ms, step in stage_points(WRITING, 5.0)} == {(5000, 3)}
    empty = TrainedStep(2, 7.0, None, 0.0, None, None)
    assert step_points(TRAINING, [*steps(1, 1, at=0.0), empty]) == [
        ("train/loss", 1.0, 1000, 1), ("train/learning_rate", 1e-3, 1000, 1), ("train/gradient_norm", 0.5, 1000, 1),
        ("train/tokens_per_s", 200.0, 1000, 1), ("train/learning_rate", 0.0, 7000, 2),
    ]  # fmt: skip


def test_an_interrupted_round_continues_in_its_child_run_without_doubled_points(mirror: Mirror, tmp_path: Path) -> None:
    points = LivePoints(tmp_path)
    points.open(1, 1000.0)
    points.add(1, stage_points(WRITING, 1000.0))
    points.add(1, step_points(TRAINING, steps(1, 4)))
    LiveStreams(mirror).send(points.files())
    (child,) = Seen(mirror).children
    assert (child.info.status, child.info.start_time, child.data.tags["vigc.state"]) == ("RUNNING", 1_000_000, "running")
    assert child.data.metrics["progress/generate_correct_filter"] == 0.25
    mirror.close("KILLED")
    assert Seen(mirror).children[0].info.status == "KILLED"

    points = LivePoints(tmp_path)  # of the next driver, which trains again from its step checkpoint
    points.open(1, 2000.0)
    points.add(1, step_points(TRAINING, steps(3, 6, at=2000.0)))
    streams = LiveStreams(mirror)
    streams.send(points.files())
    streams.send(points.files())
    seen = Seen(mirror)
    assert (seen.children[0].info.run_id, seen.children[0].info.status) == (child.info.run_id, "RUNNING")
    expected = [(step, 1 / step, 1_000_000 + 1000 * step + (1_000_000 if step > 4 else 0)) for step in range(1, 7)]
    assert losses(seen) == expected

    mirror.log_commits(COMMITS[:2], samples, champion_folder)
    LiveStreams(mirror).send(points.files())  # the driver died before it deleted the file
    seen = Seen(mirror)
    assert [(run.info.status, run.data.tags["vigc.state"]) for run in seen.children] == [("FINISHED", "baseline"), ("FINISHED", "accepted")]
    assert seen.history(seen.children[1], "train/loss") == expected


@pytest.mark.parametrize("lands", [True, False])
def test_points_that_an_outage_has_held_up_are_replayed_once(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lands: bool
) -> None:
    points = LivePoints(tmp_path)
    points.open(1, 1000.0)
    points.add(1, step_points(TRAINING, steps(1, 600)))  # more than one request
    streams, real = LiveStreams(mirror), MlflowClient.log_batch

    def fails(*args: object, **kwargs: object) -> None:
        if lands:
            real(*args, **kwargs)  # type: ignore[arg-type]
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", fails)
        with pytest.raises(ConnectionError):
            streams.send(points.files())
    streams.forget()
    streams.send(points.files())
    assert [(step, at_ms) for step, _, at_ms in losses(Seen(mirror))] == [(step, 1_000_000 + 1000 * step) for step in range(1, 601)]


def test_a_line_that_a_killed_driver_left_unfinished_is_passed_over(tmp_path: Path) -> None:
    points = LivePoints(tmp_path)
    points.open(1, 1.0)
    path = points.files()[1]
    with path.open("a") as file:
        file.write('["train/loss", 0.5, 1')
    assert [key for (key, _, _, _), _ in points_from(path, 0)] == [""]
    points.add(1, [("train/loss", 0.25, 2000, 2)])
    assert [point for point, _ in points_from(path, 0)] == [("", 0.0, 1000, 0), ("train/loss", 0.25, 2000, 2)]
