"""What the dispatcher costs the driver per task, by the number of engines.

    python -m benchmarks.dispatch [--engines 1 100 1000] [--tasks 5000]

The fleet, its swaps and its dispatcher are the real ones. Engines are simulated: handles in this process, whose calls put their answer
into Ray's object store at once. So all CPU seconds are the driver's own, submitting a task to an actor not included.
"""

from __future__ import annotations

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
from cluster.resources.connect import connected

_LIMIT_S = 600.0


@dataclass(frozen=True)
class Row:
    """One fleet."""

    num_engines: int
    num_tasks: int
    start_s: float
    """To start and swap all engines."""
    ms_per_task: float
    """CPU milliseconds of this process."""


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


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "dispatch.json")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--tasks", type=int, default=5000)
    args = parser.parse_args()
    with connected(None, num_cpus=1, temp_dir=None, timeout_s=60):
        rows = [measured(num, args.tasks) for num in args.engines]
    table = Table("engines", "tasks", "start s", "ms per task", box=None)
    for row in rows:
        table.add_row(str(row.num_engines), str(row.num_tasks), f"{row.start_s:.2f}", f"{row.ms_per_task:.2f}")
    Console().print(table)
    write_results(args.out, rows)


def measured(num_engines: int, num_tasks: int) -> Row:
    """One fleet, which ends with this process: it has no processes of its own."""
    engine: Any = SimulatedEngine
    fleet = Fleet(lambda _: engine(), num_engines, task_timeout_s=_LIMIT_S, start_timeout_s=_LIMIT_S, swap_timeout_s=_LIMIT_S)
    tensors = {"weight": torch.zeros(1)}
    started = time.perf_counter()
    fleet.start(WeightUpdate("r1", digest_of(tensors), manifest_of(tensors), tensors=tensors))
    start_s = time.perf_counter() - started
    began = time.process_time()
    num_done = sum(1 for _ in fleet.run(range(num_tasks), lambda handle, task: handle.serve.remote(task)))
    assert num_done == num_tasks
    return Row(num_engines, num_tasks, round(start_s, 2), round(1000 * (time.process_time() - began) / num_tasks, 3))


if __name__ == "__main__":
    main()
