"""Controls beside a run: what they train on, where they start, what they leave behind, and that they change nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from loop.run.retention import needed_files, prunable
from loop.run.stages.controls import differences
from loop.store.commits import RoundCommit, RoundState
from loop.store.run_store import Store
from policies.records import Prediction
from tests.loop.run.small_run import lose_machine, start, vigc, wait_until, write_config
from tests.loop.store.make_run import checkpoint, commit_of, records


def predictions(**flags: str) -> dict[str, list[Prediction]]:
    """`1` for a right answer, `0` for a wrong one."""
    return {
        f"{name[:8]}/{name[9:]}": [Prediction(f"q{i}", "", flag == "1", "v") for i, flag in enumerate(row)] for name, row in flags.items()
    }


def test_a_difference_is_paired_over_held_out_sets_alone() -> None:
    control = predictions(held_out_a="1100", held_out_b="000000", acceptan_c="00")
    candidate = predictions(held_out_a="1010", held_out_b="111000", acceptan_c="11")
    found = differences(control, candidate)
    assert found["difference/a"] == 0.0
    assert found["difference_low/a"] < 0.0 < found["difference_high/a"]
    assert found["difference/b"] == 0.5
    assert found["pooled_difference"] == pytest.approx(0.3)
    assert found["pooled_difference_low"] < 0.3 < found["pooled_difference_high"]
    assert not [name for name in found if name.endswith("/c")]


def write_rounds(store: Store, states: list[RoundState]) -> list[RoundCommit]:
    """A baseline and rounds with a control each."""
    champion = ""
    for index, state in enumerate([RoundState.BASELINE, *states]):
        made = [checkpoint(store, f"round-{index:04d}", f"weights {index}".encode())]
        parts = [store.write_part(index, name, records(index + 1)).entry for name in ("selected", "predictions")]
        if index:
            made.append(checkpoint(store, f"round-{index:04d}-control-seed_only", f"control {index}".encode()))
            parts.append(store.write_part(index, "predictions-control-seed_only", records(1)).entry)
            parts.append(store.write_json_part(index, "training-control-seed_only", {"digest": str(index)}).entry)
        champion = champion if state is RoundState.REJECTED else made[0].path
        files = [*parts, *(file for one in made for file in one.files)]
        store.commit(commit_of(store, index, files, state=state, champion=champion, champion_path=champion))
    return store.commits()


def test_the_control_beside_the_champion_stays_and_others_go(store: Store) -> None:
    states = [RoundState.ACCEPTED, RoundState.ACCEPTED, RoundState.REJECTED, RoundState.REJECTED]
    commits = write_rounds(store, states)
    gone = ("round-0001", "round-0001-control-seed_only", "round-0003", "round-0003-control-seed_only")
    assert prunable(commits, 1, None) == [f"checkpoints/{name}" for name in gone]
    needed = {file.path for file in needed_files(commits)}
    store.check_files(needed_files(commits))
    assert "checkpoints/round-0002-control-seed_only/model.safetensors" in needed
    assert "rounds/0002/parts/training-control-seed_only.data.json" in needed
    assert not [path for path in needed if "0004" in path or "predictions-control" in path]


# ---- with real actors

CONTROLS = ["seed_only", "no_correction"]


@dataclass(frozen=True)
class Beside:
    """A run of two rounds with both controls that lost its machine while the second control of round 1 trained, and was resumed."""

    run_dir: Path
    kept: dict[Path, int]
    """Finished parts of round 1 when the machine was lost, with the time they were written."""
    printed: str
    """What the resume printed."""


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Beside:
    folder = tmp_path_factory.mktemp("beside")
    run_dir = folder / "run"
    config = write_config(folder, control=CONTROLS, tracking={"enabled": False}, cluster={"num_engines": 1, "trainer_ranks": 1})
    driver = start("run", str(config), "--run-dir", str(run_dir), cwd=folder)
    wait_until(lambda: any(run_dir.glob("checkpoints/round-0001-control-no_correction.steps/step-*[0-9]")), 400)
    lose_machine(driver)
    kept = {path: path.stat().st_mtime_ns for path in (run_dir / "rounds" / "0001" / "parts").iterdir()}
    result = vigc("resume", str(run_dir), cwd=folder)
    assert result.returncode == 0, result.stderr
    return Beside(run_dir, kept, result.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_loses_its_machine_in_the_training_of_a_control_keeps_what_was_finished(beside: Beside) -> None:
    names = {path.name for path in beside.kept}
    assert {"predictions.parquet", "training-control-seed_only.json", "predictions-control-seed_only.json"} <= names
    assert {path: path.stat().st_mtime_ns for path in beside.kept} == beside.kept, "a finished stage was done again"
    assert "training resumed after step" in beside.printed


@pytest.mark.slow
def test_each_control_has_a_line_of_its_own_and_is_compared_with_the_candidate(beside: Beside) -> None:
    for commit in Store.open(beside.run_dir).commits()[1:]:
        candidate, *controls = [path for path in commit.checkpoints if path.startswith("checkpoints/round-")]
        assert controls == [f"{candidate}-control-{name}" for name in CONTROLS]
        weights = {file.sha256 for file in commit.files if file.path.endswith("/model.safetensors")}
        assert len(weights) == 3
        for name in CONTROLS:
            found = {key.removeprefix(f"control/{name}/"): value for key, value in commit.metrics.items() if f"control/{name}/" in key}
            assert found["difference/near"] == pytest.approx(commit.metrics["candidate_accuracy/near"] - found["accuracy/near"])
            assert found["pooled_difference_low"] <= found["pooled_difference"] <= found["pooled_difference_high"]
        tokens = [commit.metrics[f"{prefix}train_target_tokens"] for prefix in ("", "control/seed_only/")]
        assert tokens[0] != tokens[1]
    assert "over seed only" in beside.printed
    status = json.loads(vigc("status", str(beside.run_dir), "--json", cwd=beside.run_dir).stdout)
    assert "control/seed_only/pooled_difference" in status["rounds"][2]["metrics"]


@pytest.mark.slow
def test_controls_and_a_lost_machine_change_nothing_of_the_run(beside: Beside, finished: tuple[Path, str]) -> None:
    plain, found = Store.open(finished[0]).commits(), Store.open(beside.run_dir).commits()
    assert [commit.candidate for commit in found] == [commit.candidate for commit in plain]
    for one, other in zip(plain, found, strict=True):
        files = {file.path: file.sha256 for file in other.files if "-control-" not in file.path}
        assert files == {file.path: file.sha256 for file in one.files}
