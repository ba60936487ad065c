"""The chaos harness sees what it is there to see: lost and changed work, processes and memory left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.actors import in_runs, matrix
from benchmarks.chaos.processes import MARK, Family, title_of
from benchmarks.chaos.results import Results
from benchmarks.chaos.table import failures
from benchmarks.chaos.world import Outcome, finished_files, half_written, lost_and_duplicated

ENDING: dict[str, Any] = {
    "campaign": 0, "ending": "ended", "exit_code": 0, "stderr": "", "digest_equal": True, "lost": 0, "doubled": 0, "leftovers": [],
    "scratch": [], "beyond_loopback": [], "finished_redone": [],
}  # fmt: skip
CELL: dict[str, Any] = {**ENDING, "cell": "engine, serving, SIGKILL", "verdict": "survived"}


def of(kind: str, event: dict[str, Any]) -> list[str]:
    results = Results(None)
    results.record(kind, event)
    return failures(results)


def test_a_run_that_kept_its_promises_is_no_failure() -> None:
    assert of("ending", ENDING) == of("cell", CELL) == of("cell", {**CELL, "verdict": "bounded stop", "exit_code": 1}) == []


@pytest.mark.parametrize(
    "change",
    [
        {"lost": 1}, {"doubled": 2}, {"digest_equal": False}, {"ending": "hang"}, {"leftovers": ["process 1"]}, {"scratch": ["/tmp/x"]},
        {"beyond_loopback": ["0.0.0.0:80"]}, {"finished_redone": ["rounds/0001/parts/records-00000.parquet"]},
    ],
)  # fmt: skip
def test_a_broken_promise_is_a_failure(change: dict[str, Any]) -> None:
    assert len(of("ending", {**ENDING, **change})) == len(of("cell", {**CELL, **change})) == 1


@pytest.mark.parametrize("verdict", ["missed", "hang", "wrong result", "stop without a named error"])
def test_a_cell_that_was_neither_survived_nor_a_bounded_stop_is_a_failure(verdict: str) -> None:
    assert of("cell", {**CELL, "verdict": verdict})


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_every_cell_is_in_one_run_and_faults_of_one_run_do_not_meet(turn: int) -> None:
    cells, runs = matrix(), in_runs(matrix(), turn)
    assert sorted(cell.name for run in runs for cell in run) == sorted({cell.name for cell in cells})
    for run in runs:
        phases = [cell.phase for cell in run]
        assert sorted(set(phases)) == sorted(phases)
        assert len({cell.ends_the_run for cell in run}) == 1
        if run[0].ends_the_run:
            assert phases == sorted(phases), "what comes later in a run is still to come when it is resumed"


def test_lost_and_duplicated_records_are_counted_by_round() -> None:
    expected = Outcome("x", {1: ["a", "b"], 2: ["a"]})
    assert lost_and_duplicated(expected, expected) == (0, 0)
    assert lost_and_duplicated(expected, Outcome("x", {1: ["a", "b", "b"], 2: []})) == (1, 1)
    assert lost_and_duplicated(expected, Outcome("x", {1: ["a"], 2: ["a", "b"]})) == (1, 1)


def test_results_of_an_interrupted_campaign_are_kept_and_merged(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("b", 2)):
        Results(tmp_path / name).record("ending", {**ENDING, "campaign": number})
    merged = Results.read([tmp_path / "a", tmp_path / "b"])
    assert [event["campaign"] for event in merged["ending"]] == [1, 2]


def test_a_file_that_is_made_again_is_noticed_and_a_half_written_one_is_seen(tmp_path: Path) -> None:
    parts = tmp_path / "rounds" / "0001" / "parts"
    parts.mkdir(parents=True)
    for name in ("records-00000.parquet", "records-00000.json", "records-00001.parquet", ".records-00001.json.1-x.tmp"):
        (parts / name).write_text("{}")
    before = finished_files(tmp_path)
    assert sorted(before) == ["rounds/0001/parts/records-00000.json", "rounds/0001/parts/records-00000.parquet"]
    time.sleep(0.01)
    (parts / "records-00000.parquet").write_text("{}")
    assert finished_files(tmp_path) != before
    (tmp_path / "checkpoints" / "round-0001.tmp").mkdir(parents=True)
    assert half_written(tmp_path) == ["rounds/0001/parts/.records-00001.json.1-x.tmp"]


def test_a_process_that_a_session_leaves_behind_is_found_with_what_it_listens_on(tmp_path: Path) -> None:
    family = Family(tmp_path)
    listen = "import os, socket, time; s = socket.create_server(('127.0.0.1', 0)); os.chdir('/'); print(s.getsockname()[1]); time.sleep(60)"
    command = f"import subprocess, sys; subprocess.Popen([sys.executable, '-uc', {listen!r}])"
    marked = {**os.environ, MARK: str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", command], cwd=tmp_path, env=marked, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    port = int(parent.stdout.readline())
    parent.wait(10)
    left = family.leftovers()
    pids = family.pids()
    family.end()
    assert family.wait_gone(10)
    assert len(left) == 1
    assert f"127.0.0.1:{port}" in left[0]
    assert [title_of(pid) for pid in pids] == [""]
