from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import psutil
import pytest
import ray

from actors.engines.weights import digest_of, read_checkpoint
from actors.trainer import RankOptions, TrainerGroup
from actors.training.job import TrainerError
from tests.actors.training_helpers import Shapes, job_of, save_base

START_S = 120.0
TRAIN_S = 120.0


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def single(base, tmp_path_factory):
    """The same job on one rank, with real Ray."""
    group = TrainerGroup(1, RankOptions())
    job = job_of(base, tmp_path_factory.mktemp("single") / "out")
    result = group.train(job, Shapes(), START_S + TRAIN_S)
    assert group.train(job, Shapes(), TRAIN_S) == result
    group.shutdown()
    return result


def test_two_ranks_train_like_one_over_several_jobs_and_a_death_is_a_named_error(base, single, tmp_path):
    group = TrainerGroup(2, RankOptions())
    group.start(START_S)
    pids = group.pids
    for stage in (0, 2):
        job = job_of(base, tmp_path / f"stage{stage}", zero_stage=stage)
        seen = []
        result = group.train(job, Shapes(), TRAIN_S, on_progress=seen.append)
        assert result.losses == pytest.approx(single.losses, abs=1e-4)
        assert result.num_target_tokens == single.num_target_tokens
        assert result.digest == digest_of(read_checkpoint(job.output))
    assert group.pids == pids

    endless = job_of(base, tmp_path / "endless", num_steps=100_000)
    killer = threading.Timer(3.0, os.kill, (pids[1], signal.SIGKILL))
    killer.start()
    started = time.monotonic()
    with pytest.raises(TrainerError, match="could not train"):
        group.train(endless, Shapes(), TRAIN_S, on_progress=seen.append)
    assert time.monotonic() - started < 40
    assert seen[-1].num_steps == 100_000
    assert_gone(pids)
    assert not endless.output.exists()


def test_job_that_takes_too_long_or_does_not_fit_ends_in_a_named_error(base, tmp_path):
    group = TrainerGroup(1, RankOptions())
    job = job_of(base, tmp_path / "out", num_steps=100_000)
    with pytest.raises(TrainerError, match="did not train within"):
        group.start(START_S)
        pids = group.pids
        group.train(job, Shapes(), 2.0)
    assert_gone(pids)
    with pytest.raises(TrainerError, match="ValueError: .* is not an image-text-to-text checkpoint"):
        group.train(replace(job, base_checkpoint=tmp_path), Shapes(), START_S)
    assert group.pids == ()


def test_ranks_without_room_are_given_up_in_bounded_time():
    group = TrainerGroup(3, RankOptions())
    with pytest.raises(TrainerError, match="did not start within 3 s"):
        group.start(3.0)


def assert_gone(pids: tuple[int, ...]) -> None:
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, f"of {pids} some are still there"
        time.sleep(0.1)
