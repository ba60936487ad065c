from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from actors.engines.weights import digest_of, read_checkpoint
from actors.trainer import TrainerRank
from actors.training.core import run_local
from actors.training.job import EarlyStop, Progress, RankLostError, TrainerError, TrainingCancelledError
from cluster.errors import FinalError
from cluster.resources.placement import RankPlace
from cluster.training.group import Bounds, RankOptions, TrainerGroup
from cluster.training.watch import WATCH_GROUP, StartWatch
from policies.training.objectives import Dpo
from tests.actors.training.helpers import Shapes, job_of, pairs_of, save_base
from tests.cluster.training.mortals import Mortal, Refused, Unreachable
from tests.cluster.workers import SlowStart, wait_while

pytestmark = pytest.mark.usefixtures("cluster")

TIMEOUT_S = 180.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def test_two_ranks_train_like_one_over_several_jobs_and_a_death_is_a_named_error(base: Path, tmp_path: Path) -> None:
    single = run_local(job_of(base, tmp_path / "single", pixel_noise=0.05), Shapes())
    group = TrainerGroup(TrainerRank, 2, RankOptions())
    group.start(TIMEOUT_S)
    pids = group.pids
    for stage in (0, 2):
        job = job_of(base, tmp_path / f"stage{stage}", zero_stage=stage, pixel_noise=0.05)
        result = group.train(job, Shapes(), Bounds(TIMEOUT_S))
        assert dict(result.losses) == pytest.approx(dict(single.losses), abs=1e-4)
        assert result.num_target_tokens == single.num_target_tokens
        assert result.digest == digest_of(read_checkpoint(job.output))
    assert group.train(job, Shapes(), Bounds(TIMEOUT_S)) == result
    with_pairs = job_of(base, tmp_path / "single pairs", dpo=Dpo(pairs_per_step=4), pairs=pairs_of(5))
    result = group.train(replace(with_pairs, output=tmp_path / "pairs"), Shapes(), Bounds(TIMEOUT_S))
    single = run_local(with_pairs, Shapes())
    assert (result.num_pairs, dict(result.losses)) == (5, pytest.approx(dict(single.losses), abs=1e-4))
    assert np.array(result.pair_points)[:, 3] == pytest.approx(np.array(single.pair_points)[:, 3], abs=1e-3)
    assert group.pids == pids

    endless = job_of(base, tmp_path / "endless", num_steps=100_000)
    killed_at: list[float] = []

    def kill_once(progress: Progress) -> None:
        if not killed_at:
            assert progress.num_steps == endless.hyper.num_steps
            os.kill(pids[1], signal.SIGKILL)
            killed_at.append(time.monotonic())

    with pytest.raises(RankLostError, match="could not train"):
        group.train(endless, Shapes(), Bounds(TIMEOUT_S), on_progress=kill_once)
    assert time.monotonic() - killed_at[0] < 60
    assert_gone(pids)
    assert not endless.output.exists()


@pytest.mark.slow
def test_a_hanging_rank_is_replaced_and_goes_on_from_the_last_step(base: Path, tmp_path: Path) -> None:
    """A lost one does too: `test_nodes`."""
    settings = {"num_steps": 12, "zero_stage": 1, "pixel_noise": 0.05}
    group = TrainerGroup(TrainerRank, 2, RankOptions())
    undisturbed = group.train(job_of(base, tmp_path / "undisturbed", **settings), Shapes(), Bounds(TIMEOUT_S))
    job = replace(job_of(base, tmp_path / "out", **settings), steps_folder=tmp_path / "steps", steps_between=1)
    pids, seen = group.pids, list[int]()

    def stop_once(progress: Progress) -> None:
        if not seen:
            os.kill(pids[0], signal.SIGSTOP)
        seen.append(progress.step)

    result = group.train(job, Shapes(), Bounds(TIMEOUT_S, stall_timeout_s=25, max_restarts=1), stop_once)
    assert_gone(pids)
    assert (result.digest, result.losses) == (undisturbed.digest, undisturbed.losses)
    assert seen == sorted(seen), "steps were done again that a step checkpoint had kept"
    group.shutdown()


def test_a_cancelled_group_ends_its_job_and_begins_no_other(base: Path, tmp_path: Path) -> None:
    group, job = TrainerGroup(TrainerRank, 1, RankOptions()), job_of(base, tmp_path / "out")
    group.launch()
    wait_while(lambda: not starting_ranks(), bound_s=30)
    (rank,) = starting_ranks()
    timer = threading.Timer(0.5, group.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(TrainingCancelledError):
        group.train(job, Shapes(), Bounds(TIMEOUT_S, start_timeout_s=60, max_restarts=3))
    assert time.monotonic() - started < 30
    assert_gone((rank.pid,))
    with pytest.raises(TrainingCancelledError):
        group.train(job, Shapes(), Bounds(TIMEOUT_S))
    assert not starting_ranks()


@pytest.mark.slow
def test_two_ranks_pack_and_stop_as_one_does(base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "num_steps": 40, "learning_rate": 3e-2, "warmup_share": 0.3, "early_stop": EarlyStop(2, 2, 5), "gradient_accumulation": 1,
        "packing": True, "max_tokens": 100, "max_micro_batch_tokens": 160,
    }  # fmt: skip
    found = []
    for num_ranks, stage in ((1, 0), (2, 1), (2, 3)):
        group = TrainerGroup(TrainerRank, num_ranks, RankOptions())
        found.append(
            group.train(job_of(base, tmp_path / f"{num_ranks}-{stage}", zero_stage=stage, **settings), Shapes(), Bounds(TIMEOUT_S))
        )
        group.shutdown()
    one, *others = found
    assert one.num_steps < 40
    for other in others:
        assert (other.num_steps, other.best_step) == (one.num_steps, one.best_step)
        assert dict(other.held_out_losses) == pytest.approx(dict(one.held_out_losses), abs=1e-2)


@pytest.mark.slow
def test_two_ranks_refuse_unreadable_images_as_one_does(base: Path, tmp_path: Path) -> None:
    job = job_of(base, tmp_path / "out", num_steps=20, max_unreadable_images=0.5)
    source = Shapes(bad=frozenset(sample.image_id for sample in job.samples[:14]))
    errors = []
    for num_ranks in (1, 2):
        with pytest.raises(TrainerError, match=r"the images of 1[34] of 24 training samples .*allows 12; the first: ") as caught:
            TrainerGroup(TrainerRank, num_ranks, RankOptions()).train(job, source, Bounds(TIMEOUT_S))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.slow
def test_a_rank_that_hangs_while_it_starts_is_replaced(base: Path, tmp_path: Path) -> None:
    group = TrainerGroup(TrainerRank, 2, RankOptions())
    group.launch()
    wait_while(lambda: not starting_ranks(), bound_s=30)
    hung = starting_ranks()[0]
    hung.suspend()
    result = group.train(job_of(base, tmp_path / "out", num_steps=2), Shapes(), Bounds(TIMEOUT_S, start_timeout_s=25, max_restarts=1))
    assert result.num_steps == 2
    assert_gone((hung.pid,))
    group.shutdown()


def starting_ranks() -> list[psutil.Process]:
    """Ray names a process by what it does."""
    return [process for process in psutil.Process().children(recursive=True) if "TrainerRank.prepare" in " ".join(process.cmdline())]


def test_job_that_does_not_fit_is_a_named_error_that_says_why(base: Path, tmp_path: Path) -> None:
    group = TrainerGroup(TrainerRank, 1, RankOptions())
    group.start(TIMEOUT_S)
    pids = group.pids
    with pytest.raises(TrainerError, match=r"ValueError: .* is not an image-text-to-text checkpoint"):
        group.train(replace(job_of(base, tmp_path / "out"), base_checkpoint=tmp_path), Shapes(), Bounds(TIMEOUT_S))
    assert_gone(pids)
    assert group.pids == ()


def test_the_processes_of_a_stage_3_job_are_gone_when_it_is_done(base: Path, tmp_path: Path) -> None:
    """They would keep its weights, and engines wake on the same devices next."""
    group = TrainerGroup(TrainerRank, 1, RankOptions())
    group.start(TIMEOUT_S)
    (pid,) = group.pids
    job = job_of(base, tmp_path / "out", num_steps=2, zero_stage=3)
    assert group.train(job, Shapes(), Bounds(TIMEOUT_S)).num_steps == 2
    assert not psutil.pid_exists(pid)
    assert group.pids == ()


def test_ranks_without_room_are_given_up_in_bounded_time() -> None:
    group = TrainerGroup(TrainerRank, 3, RankOptions())
    with pytest.raises(RankLostError, match=r"did not start within 3 s of its last progress: .*rank 2 starting its process"):
        group.start(3.0)


def test_a_slow_start_that_makes_progress_is_no_hang_and_one_that_makes_none_is() -> None:
    as_actor: Any = ray.remote(num_cpus=0, concurrency_groups={WATCH_GROUP: 1})
    rank = as_actor(SlowStart).remote()
    ray.get(rank.start_phase.remote(), timeout=30)
    watch, began_s = StartWatch([rank], timeout_s=2.0), time.monotonic()
    with pytest.raises(RankLostError, match="within 2 s of its last progress: rank 0 at step 3"):
        wait_while(lambda: watch.poll() is None, bound_s=30)
    assert time.monotonic() - began_s > 4


def test_ranks_that_one_which_has_died_did_not_join_are_lost_and_not_at_fault(tmp_path: Path) -> None:
    class Rank(Unreachable):
        def __init__(self, *place: int) -> None:
            super().__init__(*place, tmp_path)

    with pytest.raises(RankLostError, match="connection refused"):
        TrainerGroup(Rank, 2, RankOptions(num_cpus=0)).start(30.0)


def test_an_error_of_the_store_ends_a_training_unchanged_and_at_once(tmp_path: Path) -> None:
    class Rank(Refused):
        def __init__(self, *place: int) -> None:
            super().__init__(*place, tmp_path)

    job: Any = None
    with pytest.raises(FinalError, match=r"^the store takes no more$"):
        TrainerGroup(Rank, 1, RankOptions(num_cpus=0)).train(job, Shapes(), Bounds(60.0, start_timeout_s=30.0, max_restarts=3))
    assert len(list(tmp_path.iterdir())) == 1


class Places:
    """Places of one rank on a node that is lost after each of the first `num_losses` starts, and then not."""

    def __init__(self, num_losses: int) -> None:
        self.num_losses = num_losses

    def place_ranks(self, timeout_s: float) -> list[RankPlace]:
        assert timeout_s > 0
        return [RankPlace("here", None)]

    def is_lost(self, place: RankPlace) -> bool:
        self.num_losses -= 1
        return self.num_losses >= 0


def test_ranks_that_are_lost_with_their_node_cost_no_restart() -> None:
    places = Places(num_losses=2)
    group = TrainerGroup(Mortal, 1, RankOptions(num_cpus=0, placement=places))
    job: Any = None
    with pytest.raises(RankLostError, match="could not start"):
        group.train(job, Shapes(), Bounds(60.0, start_timeout_s=30.0, max_restarts=1))
    assert places.num_losses == -2, "two losses of a node, a restart, and the end"


def assert_gone(pids: tuple[int, ...]) -> None:
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, f"of {pids} some are still there"
        time.sleep(0.1)
