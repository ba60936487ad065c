"""What is tried on a cluster. Each experiment returns one row of results per run, in the order of its runs."""

from __future__ import annotations

import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.world import ROOT
from benchmarks.cluster.machines import Machine, Machines, machines
from benchmarks.cluster.runs import Run, write_config

Row = dict[str, Any]

_ROOM = (0, 3, 3, 3)
"""CPUs of the machines. The head has none, so that all actors are on the others, and two of these have room for all."""
_ROOM_FOR_TWO = (0, 6, 6)
"""A driver that stands still keeps its actors, beside those of the driver that takes over."""
_NUM_ROUNDS_OF_KILLS = 4
_ENGINE, _RANK, _FILTER = "ray::EngineWorker", "ray::TrainerRank", "ray::filter_shard"
_HALF_A_SHARD_S = 0.4
_BACK_AFTER_S = 5.0
_STOPPED_S = 75.0
"""Longer than a lease lasts."""
_REFUSED_S = 120.0


@dataclass(frozen=True)
class Lab:
    """Where the logs of the experiments are, and how to name their runs."""

    logs: Path

    @contextmanager
    def machines(self, *cpus: int) -> Iterator[Machines]:
        with machines(cpus, Path(tempfile.mkdtemp(prefix="machines-", dir=self.logs))) as found:
            yield found

    def run(self, on: Machines, name: str, *, on_head: bool = False, recipe: Path | None = None, **changes: Any) -> Run:
        make = Run.on_head if on_head else Run.in_bucket
        return make(on, recipe or write_config(self.logs, **changes), f"{name}-{time.time_ns():x}", self.logs)


def nodes(lab: Lab, repeats: int) -> Iterator[Row]:
    """The same run in a folder on one machine, and in the bucket on one, two and four."""
    reference = ""
    for cpus, on_head in (((5,), True), ((5,), False), ((2, 3), False), ((1, 1, 1, 2), False)):
        for _ in range(repeats):
            with lab.machines(*cpus) as found:
                run = lab.run(found, f"nodes-{len(cpus)}", on_head=on_head).start()
                seconds, digest = run.finish(), run.verified()["digest"]
            reference = reference or digest
            yield {"machines": len(cpus), "run_in": "folder" if on_head else "s3", "seconds": seconds, "same_digest": digest == reference}


def kills(lab: Lab, repeats: int) -> Iterator[Row]:
    """Runs of four rounds that lose a worker machine in every stage. A lost machine comes back empty a few seconds later."""
    with lab.machines(9) as found:
        run = lab.run(found, "undisturbed", rounds=_NUM_ROUNDS_OF_KILLS).start()
        seconds, expected = run.finish(), run.records()
        digest = run.verified()["digest"]
    yield {"stage": "none", "seconds": seconds, "num_records": expected.total()}
    for _ in range(repeats):
        with lab.machines(*_ROOM) as found:
            run = lab.run(found, "kills", rounds=_NUM_ROUNDS_OF_KILLS, cluster={"min_engines": 1}).start()
            rows = [_lose(run, number, stage, moment) for number, stage, moment in _MOMENTS]
            seconds, same, records = run.finish(), run.verified()["digest"] == digest, run.records()
            lost, doubled = (expected - records).total(), (records - expected).total()
            yield from ({**row, "run_seconds": seconds, "same_digest": same, "lost": lost, "doubled": doubled} for row in rows)


def _lose(run: Run, number: int, stage: str, moment: Callable[[Run], Machine]) -> Row:
    """Lose the machine where a stage of round `number` runs, and bring it back."""
    run.await_file(f"rounds/{number - 1:04d}/commit.json")
    machine = moment(run)
    machine.lose()
    time.sleep(_BACK_AFTER_S)
    machine.start_node(run.machines.head)
    return {"stage": stage, "round": number, "machine": machine.place.address}


def _where(*marks: str, after_s: float = 0.0) -> Callable[[Run], Machine]:
    def moment(run: Run) -> Machine:
        machine = run.await_title(*marks, machines=run.machines.workers)
        time.sleep(after_s)
        return machine

    return moment


def _swapping(run: Run) -> Machine:
    run.await_title(f"{_RANK}.train", machines=run.machines.workers)
    return run.await_title(f"{_ENGINE}.swap", f"{_ENGINE}.preload", machines=run.machines.workers)


def _committing(run: Run) -> Machine:
    machine = run.await_title(f"{_ENGINE}.evaluate", machines=run.machines.workers)
    run.await_file(f"rounds/{_NUM_ROUNDS_OF_KILLS:04d}/parts/predictions.json")
    return machine


_MOMENTS: list[tuple[int, str, Callable[[Run], Machine]]] = [
    (1, "generate", _where(f"{_ENGINE}.write_records")),
    (1, "train", _where(f"{_RANK}.train", after_s=1.0)),
    (2, "correct", _where(f"{_ENGINE}.write_records", after_s=_HALF_A_SHARD_S)),
    (2, "evaluate", _where(f"{_ENGINE}.evaluate")),
    (3, "filter", _where(_FILTER)),
    (3, "swap", _swapping),
    (4, "commit", _committing),
]
"""Rounds, stages and moments, in order: at most two a round, so that every loss is one of a run that has recovered."""


def drivers(lab: Lab, repeats: int) -> Iterator[Row]:
    """A driver that is killed, a head that is lost with its file system, and two drivers of one run."""
    with lab.machines(5) as found:
        run = lab.run(found, "undisturbed").start()
        run.finish()
        digest = run.verified()["digest"]
    for _ in range(repeats):
        for fault, room in ((_kill_driver, _ROOM), (_lose_head, _ROOM), (_two_drivers, _ROOM_FOR_TWO)):
            with lab.machines(*room) as found:
                run = lab.run(found, "drivers").start()
                row = fault(run)
                yield {"fault": fault.__name__.strip("_"), **row, "same_digest": run.verified()["digest"] == digest}


def _kill_driver(run: Run) -> Row:
    run.await_title(f"{_RANK}.train", machines=run.machines.workers)
    run.kill_driver()
    return {"seconds": run.resume().finish()}


def _lose_head(run: Run) -> Row:
    """All other machines leave with it: Ray's nodes do not outlive their head."""
    run.await_title(f"{_ENGINE}.write_records", machines=run.machines.workers)
    for machine in run.machines.all:
        machine.lose()
    run.await_driver()
    for machine in run.machines.all:
        machine.start_node(run.machines.head)
    return {"seconds": run.resume().finish()}


def _two_drivers(run: Run) -> Row:
    """The second is refused while the first one works, takes over once that stands still for longer than its lease, and the first then
    cannot write any more."""
    run.await_title(f"{_ENGINE}.write_records", machines=run.machines.workers)
    first = run.driver
    assert first is not None
    refused = run.command("resume", run.uri).wait(_REFUSED_S)
    first.send_signal(signal.SIGSTOP)
    time.sleep(_STOPPED_S)
    run.resume()
    run.await_title(f"{_ENGINE}.write_records", f"{_RANK}.train", machines=run.machines.workers)
    first.send_signal(signal.SIGCONT)
    seconds, ended = run.finish(), first.wait(_REFUSED_S)
    return {"seconds": seconds, "second_refused": refused != 0, "first_ended_with": ended}


def store(lab: Lab, repeats: int) -> Iterator[Row]:
    """Seconds of a round of the demo in the bucket and in a folder, one after the other, turn by turn."""
    recipe = ROOT / "loop" / "recipes" / "shapes.yaml"
    for turn in range(repeats):
        for on_head in (True, False) if turn % 2 == 0 else (False, True):
            with lab.machines(2) as found:
                run = lab.run(found, "store", on_head=on_head, recipe=recipe).start("rounds=1", "tracking.enabled=false")
                run.finish()
                yield {"run_in": "folder" if on_head else "s3", "seconds_of_round": run.seconds_of_round(1)}


def summary(name: str, rows: list[Row]) -> str:
    """One line on an experiment."""
    same = Counter(bool(row["same_digest"]) for row in rows if "same_digest" in row)
    told = f"{same[True]} of {same.total()} runs with the digest of the undisturbed run" if same else ""
    if name == "kills":
        told += f"; records lost {sum(row.get('lost', 0) for row in rows)}, doubled {sum(row.get('doubled', 0) for row in rows)}"
    if name == "store":
        seconds = {place: [row["seconds_of_round"] for row in rows if row["run_in"] == place] for place in ("folder", "s3")}
        folder, s3 = (statistics.median(each) for each in seconds.values())
        told = f"a round takes {folder:.1f} s in a folder and {s3:.1f} s in the bucket: {s3 / folder - 1:+.1%}"
    return f"{name}: {told}"


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Row]]] = {"nodes": nodes, "kills": kills, "drivers": drivers, "store": store}
