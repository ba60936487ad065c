"""Loses or adds a node in the middle of a run and prints what came of it, as JSON.

python -m tests.cluster.resources.on_nodes SCENARIO FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from actors.trainer import TrainerRank
from actors.training.job import Progress
from cluster.errors import ClusterError
from cluster.fleet.dispatch import Submit
from cluster.fleet.fleet import Fleet
from cluster.fleet.health import State
from cluster.fleet.restarts import Rooms
from cluster.fleet.slot import engine_actor
from cluster.fleet.tasks import StatelessTasks
from cluster.planning.request import ResourceRequest
from cluster.resources.address import ClusterAddress
from cluster.resources.connect import connected
from cluster.resources.placement import EngineRange, Placement, reserve
from cluster.resources.plan import plan_resources
from cluster.resources.survey import survey
from cluster.training.group import Bounds, RankOptions, TrainerGroup
from tests.actors.training.helpers import Shapes, job_of, save_base
from tests.cluster.fleet.judges import judge
from tests.cluster.workers import Worker, update_of, weights

START_S, SWAP_S, TASK_S, TRAIN_S = 60.0, 20.0, 120.0, 200.0
"""Also enough on a machine that is busy: a process that is killed because it is slow costs a restart."""
ROOM_S, JUDGE_S = 20.0, 50.0
STORE_BYTES = 100 * 1024**2
SPARE_BYTES = 4 * 1024**3
QUICK_HEALTH_CHECKS = {f"RAY_health_check_{name}": value for name, value in (("period_ms", "500"), ("timeout_ms", "2000"))}
"""Ray's own take 15 seconds and more to notice that a node is gone."""
NUM_TASKS, LOSE_AT, WORK_S = 20, 5, 1.0
MAX_UNJUDGED = 3
LOST, STARTED = "lost", "constructing_*"
"""Marks: the loss is over; an engine has started after it."""
NUM_SHARED_TASKS, SHARED_WORK_S, JOIN_S = 30, 0.5, 60.0
COLOCATED = ResourceRequest(num_engines=2, num_filters=1, trainer_ranks=1, cpus_per_actor=1, use_gpus=False, colocated=True)
APART = ResourceRequest(num_engines=1, num_filters=1, trainer_ranks=1, cpus_per_actor=1, use_gpus=False, colocated=False)
CROWD = replace(COLOCATED, num_engines=5)


def run(placement: Placement, folder: Path, lose: Callable[[], object], submit: Submit[int], num_tasks: int = NUM_TASKS) -> dict[str, Any]:
    """Tasks through engines and judges; `lose` is called in the middle."""
    (folder / LOST).unlink(missing_ok=True)
    worker: Any = engine_actor(Worker)
    fleet = Fleet(
        lambda index: worker.options(**placement.engine_options(index)).remote(index, folder), placement.num_engines,
        task_timeout_s=TASK_S, start_timeout_s=START_S, swap_timeout_s=SWAP_S,
        rooms=Rooms(placement.engine_home, placement.check_engines, max_wait_s=ROOM_S),
    )  # fmt: skip
    judges: StatelessTasks[int] = StatelessTasks(
        judge, (folder,), MAX_UNJUDGED, JUDGE_S, placement.filter_options, placement.check_filters, placement.is_filter_stranded
    )

    def submit_for_both(engine: ActorHandle, task: int) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        served = submit(engine, task)
        return served, served

    found: dict[str, Any] = {"done": [], "error": ""}
    with ExitStack() as stack:
        stack.callback(fleet.shutdown, 20)
        fleet.start(update_of(weights(1.0), "r1"))
        lost_at = time.monotonic()
        try:
            for task, value in judges.after(fleet, range(num_tasks), submit_for_both):
                assert value == 2.0
                found["done"].append(task)
                if len(found["done"]) == LOSE_AT:
                    lose()
                    lost_at = time.monotonic()
                    for mark in folder.glob(STARTED):
                        mark.unlink()
                    (folder / LOST).touch()
        except ClusterError as error:
            found["error"] = f"{type(error).__name__}: {error}"
        served = [state is State.HEALTHY for state in fleet.states()]
        found |= {"seconds": time.monotonic() - lost_at, "engine_restarts": fleet.num_restarts, "num_healthy": sum(served)}
    return found


def serve(engine: ActorHandle, task: int) -> ray.ObjectRef:
    engine.slow.remote(task, WORK_S)
    return engine.serve.remote(task)


def serve_around_loss(engine: ActorHandle, task: int) -> ray.ObjectRef:
    """Every engine has a task when the node is lost, and the last task ends after a lost engine has started elsewhere. Tasks that do not
    wait are enough for `LOSE_AT` results: at most `MAX_UNJUDGED` of them are not judged while the driver waits for engines."""
    if task >= LOSE_AT + MAX_UNJUDGED:
        engine.wait_for.remote(STARTED if task == NUM_TASKS - 1 else LOST)
    return serve(engine, task)


def train(placement: Placement, folder: Path, lose: Callable[[], object]) -> dict[str, Any]:
    """A job on one rank, whose node is lost after the first steps, and the same job once more."""
    plan = placement.plan
    group = TrainerGroup(TrainerRank, 1, RankOptions(plan.trainer_cpus, placement=placement))
    base = save_base(folder / "base")
    job = replace(job_of(base, folder / "out", num_steps=30), steps_folder=folder / "steps", steps_between=1)
    steps: list[int] = []

    def lose_once(progress: Progress) -> None:
        if not steps:
            lose()
        steps.append(progress.step)

    with ExitStack() as stack:
        stack.callback(group.shutdown)
        disturbed = group.train(job, Shapes(), Bounds(TRAIN_S, max_restarts=2), lose_once)
        undisturbed = group.train(replace(job, output=folder / "again", steps_folder=None), Shapes(), Bounds(TRAIN_S))
    return {"digests": [disturbed.digest, undisturbed.digest], "kept": disturbed.resumed_from_step, "lost_at": steps[0]}


def fullest(homes: list[str]) -> str:
    return max(homes, key=homes.count)


def on_cluster(
    request: ResourceRequest,
    cpus: Sequence[int],
    choose: Callable[[list[str]], str],
    play: Callable[[Placement, Callable[[], object]], dict[str, Any]],
) -> dict[str, Any]:
    """Nodes with these CPUs beside a head without any; the one that is chosen from those of the bundles is lost whenever `play` says so."""
    os.environ.update(QUICK_HEALTH_CHECKS)
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES})
    nodes = [machines.add_node(num_cpus=num, object_store_memory=STORE_BYTES) for num in cpus]
    try:
        there = ClusterAddress(machines.address, is_from_environment=False)
        surveyed = survey(there, 60)  # without joining
        with connected(machines.address, num_cpus=None, temp_dir=None, timeout_s=60) as info:
            assert {*surveyed.nodes} == {*surveyed.free}
            assert {(node.node_id, node.cpus) for node in surveyed.nodes} == {(node.node_id, node.cpus) for node in info.nodes}
            plan = plan_resources(info.nodes, request)
            with reserve(plan, 60) as placement:

                def homes() -> list[str]:
                    return [placement_group_table(group)["bundles_to_node_id"][0] for group in placement.groups]

                def lose() -> None:
                    lost = choose(homes())
                    machines.remove_node(next(node for node in nodes if node.node_id == lost), allow_graceful=False)

                return {"num_nodes": len({*homes()}), **play(placement, lose)}
    finally:
        machines.shutdown()


def join(folder: Path) -> dict[str, Any]:
    """Two engines on a node that has room for them; then a second such node joins, and later the fleet is swapped."""
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES})
    machines.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    worker: Any = engine_actor(Worker)
    with ExitStack() as stack:
        stack.callback(machines.shutdown)
        info = stack.enter_context(connected(machines.address, num_cpus=None, temp_dir=None, timeout_s=60))
        plan = plan_resources(info.nodes, replace(COLOCATED, num_engines=1))
        placement = stack.enter_context(reserve(plan, 60, EngineRange(1)))
        fleet = Fleet(
            lambda index: worker.options(**placement.engine_options(index)).remote(index, folder), placement.num_engines,
            task_timeout_s=TASK_S, start_timeout_s=START_S, swap_timeout_s=SWAP_S,
            rooms=Rooms(placement.engine_home, placement.check_engines, num_places=placement.find_places),
        )  # fmt: skip
        stack.callback(fleet.shutdown, 20)
        fleet.start(update_of(weights(1.0), "r1"))
        found: dict[str, Any] = {"size": fleet.size, "before": [], "shared": []}
        began = time.monotonic()

        def tasks() -> Iterator[int]:
            """Enough of them after the new engines have begun to serve."""
            for task in count():
                if len(found["shared"]) >= NUM_SHARED_TASKS or time.monotonic() - began > JOIN_S:
                    return
                yield task

        for task, (_, engine) in fleet.run(tasks(), lambda engine, task: engine.slow.remote(task, SHARED_WORK_S)):
            have_joined = found["shared"] or engine >= found["size"]
            found["shared" if have_joined else "before"].append((task, engine))
            if len(found["before"]) == LOSE_AT and len(machines.worker_nodes) == 1:
                machines.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        swaps = fleet.swap(update_of(weights(2.0), "r2"))
        homes = {placement.engine_home(index) for index in range(fleet.size)}
        return {
            **found, "swapped": sorted(swap.engine for swap in swaps), "num_nodes": len(homes), "restarts": fleet.num_restarts,
            "incidents": fleet.take_incidents(),
        }  # fmt: skip


def on_local_ray(folder: Path, submit: Submit[int], num_tasks: int) -> dict[str, Any]:
    """A test has a server of the local Ray die or stop when it finds the mark `lose`."""
    with (
        connected(None, num_cpus=2, temp_dir=None, timeout_s=60, object_store_bytes=STORE_BYTES) as info,
        reserve(plan_resources(info.nodes, COLOCATED), 60) as placement,
    ):
        return run(placement, folder, (folder / "lose").touch, submit, num_tasks)


def short_of_memory(folder: Path) -> dict[str, Any]:
    """Ray kills what takes more than a little of the memory that is free now."""
    memory = psutil.virtual_memory()
    used = 1 - (memory.available - SPARE_BYTES) / memory.total
    os.environ.update(RAY_memory_usage_threshold=f"{used:.4f}", RAY_memory_monitor_refresh_ms="100")
    return on_local_ray(folder, lambda engine, task: engine.greedy_once.remote(task), NUM_TASKS)


if __name__ == "__main__":
    scenario, folder = sys.argv[1], Path(sys.argv[2])

    def twice(placement: Placement, lose: Callable[[], object]) -> dict[str, Any]:
        return {time: run(placement, folder, lose, serve_around_loss) for time in ("first", "second")}

    scenarios: dict[str, Callable[[], dict[str, Any]]] = {
        "a fleet shrinks": lambda: on_cluster(CROWD, (3, 3, 3), fullest, twice),
        "a node joins": lambda: join(folder),
        "engines and judges move": lambda: on_cluster(COLOCATED, (2, 2), fullest, twice),
        "ranks move": lambda: on_cluster(APART, (2, 2, 2), itemgetter(1), lambda placement, lose: train(placement, folder, lose)),
        "local": lambda: on_local_ray(folder, serve, 10 * NUM_TASKS),
        "memory": lambda: short_of_memory(folder),
    }
    print(json.dumps(scenarios[scenario]()))
