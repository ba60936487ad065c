"""What the dispatcher costs the driver per task, by the number of engines, and how busy it keeps engines that sleep.

    python -m benchmarks.dispatch [--engines 1 100 1000] [--tasks 5000] [--sleeping 1x1 2x1 100x1 1000x5] [--tasks-per-engine 20]

The fleet, its swaps and its dispatcher are the real ones, and once a second the fleet looks for nodes that have joined. Engines are
simulated. In the first table they answer at once: handles in this process, whose calls put their answer into Ray's object store. So all CPU
seconds are the driver's own, submitting a task to an actor not included. In the second table (engines x seconds) a task is a real call of
an actor, which sleeps; an actor stands for many engines, each of which works on one task after the other.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
import torch
from rich.console import Console
from rich.table import Table

from actors.engines.base import Attestation, WeightUpdate
from actors.engines.weights import digest_of, manifest_of
from benchmarks.common import argument_parser, write_results
from cluster.fleet.fleet import Fleet
from cluster.fleet.restarts import Rooms
from cluster.resources.connect import connected
from cluster.resources.nodes import free_resources

_LIMIT_S = 600.0
_ENGINES_PER_HOST = 500


@dataclass(frozen=True)
class Row:
    """One fleet."""

    num_engines: int
    num_tasks: int
    start_s: float
    """To start and swap all engines."""
    ms_per_task: float
    """CPU milliseconds of this process."""


@dataclass(frozen=True)
class SleepingRow:
    """One fleet of engines that sleep."""

    num_engines: int
    task_s: float
    num_tasks: int
    tasks_per_s: float
    efficiency: float
    """Share of the time that engines have slept, from the first task to the end of the last."""
    driver_share: float
    """CPU seconds of this process per second."""


class SimulatedEngine:
    """Answers as an engine's actor does, without one."""

    def __init__(self) -> None:
        self.swap = SimpleNamespace(remote=self._swap)
        self.start = SimpleNamespace(remote=lambda: ray.put(None))
        self.serve = SimpleNamespace(remote=ray.put)
        self.__ray_call__ = SimpleNamespace(remote=self._located)

    def _swap(self, ref: ray.ObjectRef) -> ray.ObjectRef:
        update: WeightUpdate = ray.get(ref)
        return ray.put(Attestation(update.version, update.digest, 0, 0.0))

    def _located(self, _: Any) -> ray.ObjectRef:
        return ray.put((ray.get_runtime_context().get_node_id(), os.getpid()))


class SleepingEngine(SimulatedEngine):
    """Its tasks sleep in a host."""

    def __init__(self, host: Any, index: int, task_s: float) -> None:
        super().__init__()
        self.serve = SimpleNamespace(remote=lambda task: host.serve.remote(index, task, task_s))


class Host:
    """An actor in which many engines sleep, each on one task at a time."""

    def __init__(self) -> None:
        self._locks: dict[int, asyncio.Lock] = {}

    async def serve(self, engine: int, task: int, task_s: float) -> int:
        async with self._locks.setdefault(engine, asyncio.Lock()):
            await asyncio.sleep(task_s)
            return task


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "dispatch.json")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--sleeping", nargs="+", default=["1x1", "2x1", "100x1", "1000x5"])
    parser.add_argument("--tasks-per-engine", type=int, default=20)
    args = parser.parse_args()
    with connected(None, num_cpus=1, temp_dir=None, timeout_s=60):
        rows = [measured(num, args.tasks) for num in args.engines]
        table = Table("engines", "tasks", "start s", "ms per task", box=None)
        for row in rows:
            table.add_row(str(row.num_engines), str(row.num_tasks), f"{row.start_s:.2f}", f"{row.ms_per_task:.2f}")
        Console().print(table)
        slept = [measured_asleep(one, args.tasks_per_engine) for one in args.sleeping]
    table = Table("engines", "s per task", "tasks", "tasks per s", "efficiency", "driver, of a core", box=None)
    for one in slept:
        shares = (f"{share:.1%}" for share in (one.efficiency, one.driver_share))
        table.add_row(str(one.num_engines), f"{one.task_s:g}", str(one.num_tasks), f"{one.tasks_per_s:.2f}", *shares)
    Console().print(table)
    write_results(args.out, {"answering": rows, "sleeping": slept})


def measured(num_engines: int, num_tasks: int) -> Row:
    """One fleet, which ends with this process: it has no processes of its own."""
    fleet, start_s = _started(lambda _: SimulatedEngine(), num_engines)
    began = time.process_time()
    num_done = sum(1 for _ in fleet.run(range(num_tasks), lambda handle, task: handle.serve.remote(task)))
    assert num_done == num_tasks
    return Row(num_engines, num_tasks, round(start_s, 2), round(1000 * (time.process_time() - began) / num_tasks, 3))


def measured_asleep(described: str, tasks_per_engine: int) -> SleepingRow:
    """One fleet whose engines sleep in hosts; `100x1` are 100 engines with tasks of 1 s."""
    num_engines, task_s = map(int, described.split("x"))
    num_hosts = -(-num_engines // _ENGINES_PER_HOST)
    host: Any = ray.remote(Host)
    hosts = [host.options(num_cpus=0, max_concurrency=4 * _ENGINES_PER_HOST).remote() for _ in range(num_hosts)]
    ray.get([one.serve.remote(-1, 0, 0.0) for one in hosts], timeout=_LIMIT_S)
    fleet, _ = _started(lambda index: SleepingEngine(hosts[index % num_hosts], index, task_s), num_engines)
    num_tasks = num_engines * tasks_per_engine
    began, began_cpu = time.perf_counter(), time.process_time()
    num_done = sum(1 for _ in fleet.run(range(num_tasks), lambda handle, task: handle.serve.remote(task)))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    assert num_done == num_tasks
    for one in hosts:
        ray.kill(one)
    return SleepingRow(
        num_engines, task_s, num_tasks, round(num_tasks / seconds, 3), round(tasks_per_engine * task_s / seconds, 4),
        round(cpu_s / seconds, 4),
    )  # fmt: skip


def _started(spawn: Any, num_engines: int) -> tuple[Fleet, float]:
    """A fleet, and the seconds it took to start."""
    rooms = Rooms(num_places=lambda: len(free_resources()))
    fleet = Fleet(spawn, num_engines, task_timeout_s=_LIMIT_S, start_timeout_s=_LIMIT_S, swap_timeout_s=_LIMIT_S, rooms=rooms)
    tensors = {"weight": torch.zeros(1)}
    started = time.perf_counter()
    fleet.start(WeightUpdate("r1", digest_of(tensors), manifest_of(tensors), tensors=tensors))
    return fleet, time.perf_counter() - started


if __name__ == "__main__":
    main()
