"""What a run says of itself beside its store, and which run a command goes on with."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from loop.config.run_config import load_config
from loop.errors import DamagedFileError, UserError
from loop.monitors.progress import RunProgress
from loop.monitors.run_log import LOG, STATUS, logged, read_status
from loop.run import commands
from loop.run.driver import check_same
from loop.run.state import driver_dict, driver_lines
from loop.store.documents import RunInfo
from loop.store.run_store import Store
from loop.store.storage.local import LocalStorage
from tests.loop.run.small_run import write_config
from tests.loop.store.make_run import RUN


def _fail(store: Store) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    with logged(store.storage) as log, log.ending(), RunProgress(console, listener=log) as progress:
        progress.round(1, 2)
        logging.getLogger("x").warning("no room at s3://KEY:hunter2@bucket")
        with progress.stage("write", total=2, unit="shards", round=2), progress.stage("train", total=4) as stage:
            stage.advance(2)
            if isinstance(store.storage, LocalStorage):  # elsewhere a status is written at most every half minute
                (line,) = driver_lines(store, "running")
                assert line.startswith("now: round 1/2 train: ")
                assert "beside it round 2/2 write: 0/2 shards" in line
            raise DamagedFileError("a", "b", "c", "d")


@pytest.mark.parametrize("uri", ["{}", "fsspec+local://{}"])
def test_a_log_and_a_status_tell_where_a_driver_was_and_why_it_ended(tmp_path: Path, uri: str) -> None:
    store = Store.create(uri.format(tmp_path / "run"), RUN)
    for _ in range(2):
        with pytest.raises(DamagedFileError):
            _fail(store)
    told = driver_dict(store, "interrupted")
    assert told["last_end"]["reason"] == "DamagedFileError: a is damaged: expected b, found c; d"
    assert (told["stage"]["round"], told["stage"]["name"]) == ("round 1/2", "train")
    assert [(one["round"], one["name"]) for one in told["beside"]] == [("round 2/2", "write")]
    assert "failed: DamagedFileError: a is damaged" in driver_lines(store, "interrupted")[0]
    log = store.storage.read(LOG).decode()
    assert log.count("round 1/2 train: started, 4 steps") == 2, "a terminal shows it live; resumes append"
    assert log.count("WARNING no room at s3://***@bucket") == 2


def test_a_driver_that_wrote_no_end_was_killed(store: Store) -> None:
    with logged(store.storage):
        pass
    assert driver_dict(store, "interrupted")["last_end"]["outcome"] == "killed"
    store.storage.write(STATUS, b"torn")
    assert read_status(store.storage) is None
    assert driver_lines(store, "interrupted") == []


def test_a_run_goes_on_with_its_own_config_alone(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    store = Store.create(tmp_path / "run", RunInfo(run_id="x", config=config.model_dump(mode="json")))
    check_same(config, store)
    with pytest.raises(UserError, match=r"another config.*\nseed: run: 5, given: 6\ntraining\.num_steps: run: 6, given: 7"):
        check_same(load_config(tmp_path / "config.yaml", ["seed=6", "training.num_steps=7"]), store)


def test_a_ray_job_needs_a_folder_that_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands._outliving_job(None, "runs/x", "--run-dir") == "runs/x"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for lost in (None, "runs/x"):
        with pytest.raises(UserError, match="under `ray job submit` --run-dir runs/x"):
            commands._outliving_job(lost, "runs/x", "--run-dir")
    for kept in ("/shared/x", "s3://bucket/x"):
        assert commands._outliving_job(kept, "runs/x", "--run-dir") == kept
