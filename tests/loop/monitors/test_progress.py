"""The progress of a run, as lines in a log and live on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loop.monitors.progress import RunProgress, time_left


class Clock:
    """A clock that is moved by hand, in seconds."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def log_console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=100, force_terminal=False), out


def test_a_log_gets_a_line_at_the_start_and_the_end_of_a_stage_and_few_between() -> None:
    console, out = log_console()
    clock = Clock()
    with RunProgress(console, line_every_s=5.0, clock=clock) as progress:
        progress.round(2, 5)
        with progress.stage("generate", total=8, unit="shards") as stage:
            for _ in range(8):
                clock.now_s += 2.0
                stage.advance(1, records=40, kept=10)
    assert out.getvalue().splitlines() == [
        "round 2/5",
        "round 2/5 generate: started, 8 shards",
        "round 2/5 generate: 3/8 shards, records 120, kept 30, 20.0 records/s, about 0:10 left",
        "round 2/5 generate: 6/8 shards, records 240, kept 60, 20.0 records/s, about 0:04 left",
        "round 2/5 generate: done, 8/8 shards, records 320, kept 80, 20.0 records/s, 16.0 s",
    ]


def test_stages_that_go_on_at_the_same_time_each_have_their_lines_and_their_round() -> None:
    console, out = log_console()
    clock = Clock()
    with RunProgress(console, line_every_s=5.0, clock=clock) as progress:
        progress.round(2, 5)
        with progress.stage("write", total=8, unit="shards", round=3) as ahead, progress.stage("train", total=8) as train:
            for _ in range(4):
                clock.now_s += 3.0
                ahead.advance()
                train.reach(train.done + 1)
    assert out.getvalue().splitlines() == [
        "round 2/5",
        "round 3/5 write: started, 8 shards",
        "round 2/5 train: started, 8 steps",
        "round 3/5 write: 2/8 shards, 0.3 shards/s, about 0:18 left",
        "round 2/5 train: 2/8 steps, 0.3 steps/s, about 0:18 left",
        "round 3/5 write: 4/8 shards, 0.3 shards/s, about 0:12 left",
        "round 2/5 train: 4/8 steps, 0.3 steps/s, about 0:12 left",
        "round 2/5 train: done, 4/8 steps, 0.3 steps/s, 12.0 s",
        "round 3/5 write: done, 4/8 shards, 0.3 shards/s, 12.0 s",
    ]


def test_the_time_left_is_that_at_the_pace_of_this_driver() -> None:
    clock = Clock()
    with RunProgress(log_console()[0], clock=clock) as progress, progress.stage("write", total=100, unit="shards") as stage:
        assert stage.left_s is None
        stage.advance(40)  # which were finished by an earlier driver
        assert stage.left_s is None
        clock.now_s += 30.0
        stage.advance(10)
        assert stage.left_s == pytest.approx(150.0)
        clock.now_s += 20.0
        assert stage.left_s == pytest.approx(130.0)
    assert [time_left(seconds) for seconds in (None, 59.6, 3725.0)] == ["", "about 1:00 left", "about 1:02:05 left"]


def test_a_stage_without_a_known_length_counts_what_is_done() -> None:
    console, out = log_console()
    clock = Clock()
    with RunProgress(console, clock=clock) as progress, progress.stage("train") as stage:
        clock.now_s += 2.0
        stage.advance(5)
    assert out.getvalue().splitlines() == ["train: started", "train: done, 5 steps, 2.5 steps/s, 2.0 s"]


def test_a_stage_that_fails_says_how_far_it_came_and_passes_the_error_on() -> None:
    console, out = log_console()

    def train(progress: RunProgress) -> None:
        with progress.stage("train", 10) as stage:
            stage.advance(3)
            raise KeyError("device lost")

    with RunProgress(console, clock=Clock()) as progress, pytest.raises(KeyError, match="device lost"):
        train(progress)
    assert out.getvalue().splitlines()[-1] == "train: stopped at 3/10 steps, 0.0 s"


def test_a_note_is_printed_as_it_is_and_never_broken() -> None:
    console, out = log_console()
    text = "engine [0] was restarted " + "x" * 200
    with RunProgress(console) as progress:
        progress.note(text)
    assert out.getvalue() == text + "\n"


def test_a_terminal_gets_a_live_bar_and_keeps_one_line_per_stage() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    clock = Clock()
    with RunProgress(console, clock=clock) as progress:
        progress.round(1, 3)
        with progress.stage("generate", total=4, unit="shards") as stage:
            clock.now_s += 1.0
            stage.advance(1, records=25, kept=10)
            clock.now_s += 1.0
            stage.advance(1, records=25, kept=10)
            assert progress._live is not None
            progress._live.refresh()
            live = out.getvalue()
            stage.advance(2, records=50)
        progress.note("swap took 0.2 s")
    assert "━" in live
    assert "round 1/3 generate" in live
    assert "2/4 shards" in live
    assert "about 0:02 left" in live
    assert "records 50, kept 20, 25.0 records/s" in live
    assert "round 1/3 generate: done, 4/4 shards, records 100, kept 20, 50.0 records/s, 2.0 s" in out.getvalue()
    assert "started" not in out.getvalue()
    assert "swap took 0.2 s" in out.getvalue()
