"""Faults in actors and services: each kind is killed or stopped at each moment of its life.

A run that should survive takes several faults, one per phase. A run that a fault ends is resumed and then takes the next fault.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.chaos.drivers import Record, Reference, compare
from benchmarks.chaos.processes import KINDS, listening, remove_folders, send, stop, title_of
from benchmarks.chaos.session import HANG_S, Ending, Session, summary
from benchmarks.chaos.world import ROOT, SHORT_BOUNDS, TRAINING_BOUNDS, World, half_written, new_folder

STOP_BOUND_S = 240.0
"""Time limit from a fault to the end of the run: twice the time that a start, a task, a swap or a training may take."""
_ATTEMPTS = 3
"""Attempts per cell: some moments last only milliseconds and may be missed."""
_NAMED_ERROR = re.compile(r"^error: \S|\bCRITICAL +\w+Error: ", re.MULTILINE)
"""The last line that `vigc` prints, or its log line if Ray is gone and nothing can be closed."""

_STOPPED = "stopped"
"""The run stopped with a named error; resuming it shows whether it was a bounded stop."""
_NOTHING = {"digest_equal": False, "lost": 0, "doubled": 0}


@dataclass(frozen=True)
class Cell:
    """One fault at one moment. `method` is a pattern for the victim's title; `round` and `stages` are as in `Session.place`."""

    kind: str
    moment: str
    fault: signal.Signals
    method: str
    stages: tuple[str, ...] = ()
    round: int | None = None
    rank: int | None = None
    writing: str = ""
    """Pattern of a half-written file or folder that must exist; {pid} is the victim's process id."""
    rounds: int = 1
    """Rounds of the run: two if the first round no longer needs the victim."""
    finished: str = ""
    """A file of the run that must exist."""
    meanwhile: str = ""
    """Pattern that the title of some process must match: progress calls overwrite the title of rank 0."""

    @property
    def name(self) -> str:
        return f"{self.kind if self.rank is None else f'trainer rank {self.rank}'}, {self.moment}, {self.fault.name}"

    @property
    def phase(self) -> int:
        """The phase of the run that contains the moment."""
        return _PHASES.index(self.stages[0] if self.stages else _STAGE_OF_MOMENT[self.moment])

    @property
    def ends_the_run(self) -> bool:
        return self.kind in ("driver", "raylet", "gcs_server")


def matrix(pattern: str = ".") -> list[Cell]:
    """The cells whose name matches the pattern; `telling` selects those of `TELLING`."""
    in_actors = [cell for fault in (signal.SIGKILL, signal.SIGSTOP) for cell in (*_engine(fault), *_filter(fault), *_trainer(fault))]
    mirror = [Cell("mirror", moment, signal.SIGKILL, "", stages) for moment, stages in _MIRROR_MOMENTS.items()]
    polite = [
        Cell("driver", moment, fault, "", stages) for fault in (signal.SIGTERM, signal.SIGINT) for moment, stages in _DAEMON_MOMENTS.items()
    ]
    daemons = [
        Cell(kind, moment, signal.SIGKILL, "", stages) for kind in ("raylet", "gcs_server") for moment, stages in _DAEMON_MOMENTS.items()
    ]
    wanted = TELLING.__contains__ if pattern == "telling" else re.compile(pattern).search
    return [cell for cell in (*in_actors, *mirror, *daemons, *polite) if wanted(cell.name)]


TELLING = (
    "engine, serving, SIGKILL",
    "filter, writing, SIGKILL",
    "trainer rank 1, serving, SIGKILL",
    "engine, swapping to the candidate, SIGKILL",
    "raylet, serving, SIGKILL",
)
"""The cells of a short run."""

_PHASES = ("start actors", "evaluate", "generate", "train", "finish")
_STAGE_OF_MOMENT = {
    "constructing": "start actors", "swapping at the start": "start actors", "evaluating": "evaluate", "serving": "generate",
    "writing": "generate", "swapping to the candidate": "finish",
}  # fmt: skip
"""Stages of the cells without given stages."""

_MIRROR_MOMENTS = {"constructing": ("generate",), "serving": ("train",), "closing": ("finish",)}
_DAEMON_MOMENTS = {"constructing": ("start actors",), "serving": ("generate",), "training": ("train",)}


def _engine(fault: signal.Signals) -> list[Cell]:
    title = r"^ray::EngineWorker"
    return [
        Cell("engine", "constructing", fault, rf"{title}\.(__init__|__ray_call__|start)"),
        Cell("engine", "idle", fault, rf"{title}$", ("train",)),
        Cell("engine", "serving", fault, rf"{title}\.write_records"),
        Cell("engine", "evaluating", fault, rf"{title}\.evaluate"),
        Cell("engine", "swapping at the start", fault, rf"{title}\.swap", round=0),
        Cell(
            "engine", "swapping to the candidate", fault, rf"{title}\.(swap|preload)", round=1, finished="rounds/0001/parts/training.json"
        ),
    ]


def _filter(fault: signal.Signals) -> list[Cell]:
    title = r"^ray::filter_shard"
    return [
        Cell("filter", "serving", fault, title),
        Cell("filter", "writing", fault, title, writing=r"/\.records-.*\.{pid}-"),
    ]


def _trainer(fault: signal.Signals) -> list[Cell]:
    title = r"^ray::TrainerRank"
    cells = [
        cell
        for rank in (0, 1)
        for cell in (
            Cell("trainer", "constructing", fault, rf"{title}\.prepare", rank=rank),
            Cell("trainer", "idle", fault, rf"{title}$", ("evaluate",), round=1, rank=rank, rounds=2),
            Cell("trainer", "serving", fault, title, ("train",), rank=rank, meanwhile=rf"{title}\.train"),
        )
    ]
    return [*cells, Cell("trainer", "writing", fault, title, ("train",), rank=0, writing=r"^checkpoints/\.round-0001\.tmp\.")]


def in_runs(cells: Sequence[Cell], turn: int) -> list[tuple[Cell, ...]]:
    """Group cells that can share a run: at most one per phase. Another `turn` gives other groups; cells that end the run are grouped with
    each other, in the order of their moments."""
    longest_first = sorted(cells, key=lambda cell: -cell.rounds)
    phases = [[cell for cell in longest_first if cell.phase == phase and not cell.ends_the_run] for phase in range(len(_PHASES))]
    turned = [one[turn % len(one) :] + one[: turn % len(one)] if phase % 2 and one else one for phase, one in enumerate(phases)]
    shared = [tuple(cell for cell in run if cell is not None) for run in zip_longest(*turned)]
    ends: dict[tuple[str, signal.Signals], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.phase):
        if cell.ends_the_run:
            ends.setdefault((cell.kind, cell.fault), []).append(cell)
    return shared + [tuple(run) for run in ends.values()]


def try_matrix(folder: Any, reference: Reference, cells: list[Cell], repeats: int, record: Record, is_over: Callable[[], bool]) -> None:
    """Try every cell `repeats` times, in runs of one or two rounds, until the budget is used up. Missed moments are tried again."""
    worlds = {n: World.make(folder / f"config-{n}", rounds=n, cluster=SHORT_BOUNDS, training=TRAINING_BOUNDS) for n in (1, 2)}
    for turn in range(repeats):
        runs = in_runs(cells, turn)
        for attempt in range(_ATTEMPTS):
            missed: list[Cell] = []
            for run in runs:
                if is_over():
                    return
                for cell, result in Trial(worlds[max(cell.rounds for cell in run)], reference, run).results():
                    if result["verdict"] == "missed" and attempt < _ATTEMPTS - 1:
                        missed.append(cell)
                    else:
                        record("cell", result)
            runs = in_runs(missed, turn)


class Trial:
    """A run with faults."""

    def __init__(self, world: World, reference: Reference, cells: Sequence[Cell]) -> None:
        self._world = world
        self._reference = reference
        self._cells = cells
        self._hits: dict[str, dict[str, Any]] = {}
        """By cell: who was hit, when and where, and how long the session lasted afterwards."""

    def results(self) -> list[tuple[Cell, dict[str, Any]]]:
        """The result of each cell."""
        folder = new_folder(self._world.folder, "cell")
        run_dir = folder / "run"
        overrides = () if any(cell.kind == "mirror" for cell in self._cells) else ("tracking.enabled=false",)
        sessions = [(cell,) for cell in self._cells] if self._cells[0].ends_the_run else [self._cells]
        found: dict[str, dict[str, Any]] = {}
        result: dict[str, Any] = {}
        for number, cells in enumerate(sessions):
            result = self._disturbed(Session(self._world, run_dir, number, overrides), cells)
            found |= {cell.name: result for cell in cells}
            if result["verdict"] != _STOPPED:
                break
        if any(result["verdict"] == _STOPPED for result in found.values()):
            resumed = self._resumed(run_dir, len(sessions))
            found = {name: result | resumed if result["verdict"] == _STOPPED else result for name, result in found.items()}
        if all(result["verdict"] in ("survived", "bounded stop") for result in found.values()):
            shutil.rmtree(folder)
        return [(cell, {**found.get(cell.name, result), **self._said_of(cell)}) for cell in self._cells]

    def _disturbed(self, session: Session, cells: Sequence[Cell]) -> dict[str, Any]:
        """Run one session with the faults of `cells`."""
        ending = session.watch(lambda session: self._inject(session, cells), HANG_S + STOP_BOUND_S, fast=True)
        if ending is Ending.REACHED:
            ending = session.finish(STOP_BOUND_S)
        ended_at = time.monotonic()
        for hit in (self._hits[cell.name] for cell in cells if cell.name in self._hits):
            hit["after_fault_s"] = round(ended_at - hit["at"], 2)
        result: dict[str, Any] = {"ending": ending, "beyond_loopback": session.beyond_loopback}
        if ending is Ending.HANG:
            result |= {"stacks": session.stacks(), "titles": list(session.titles.values())}
            session.abort()
        result |= {**summary(session), "leftovers": session.leftovers_after_exit()}
        result |= self._judged(session, ending, cells)
        return {**result, "scratch": remove_folders(session.family.scratch)}

    def _said_of(self, cell: Cell) -> dict[str, Any]:
        others = [name for name in self._hits if name != cell.name]
        if cell.name not in self._hits:
            return {"cell": cell.name, "verdict": "missed", "in_one_run_with": others, "after_fault_s": 0.0}
        hit = self._hits[cell.name]
        return {"cell": cell.name, "in_one_run_with": others, **{name: hit[name] for name in ("victim", "round", "stage", "after_fault_s")}}

    def _inject(self, session: Session, cells: Sequence[Cell]) -> bool:
        """Inject the faults whose moment has come; returns whether all have been injected."""
        for cell in cells:
            if cell.name not in self._hits and (pid := self._victim_of(cell, session)) is not None:
                number, stage = session.place()
                victim = title_of(pid).replace(f"{ROOT}/", "")[:120]
                self._hits[cell.name] = {"victim": victim, "at": time.monotonic(), "round": number, "stage": stage}
                send(pid, cell.fault)
                if cell.fault is not signal.SIGSTOP:
                    send(pid, signal.SIGCONT)
        return all(cell.name in self._hits for cell in cells)

    def _victim_of(self, cell: Cell, session: Session) -> int | None:
        """The process to hit, if this is the moment. It is stopped first, so that its state cannot change before the hit."""
        if not any(re.search(cell.meanwhile, title) for title in session.titles.values()):
            return None
        for pid, title in session.titles.items():
            is_wanted = pid == session.process.pid if cell.kind == "driver" else KINDS[cell.kind] in title
            if is_wanted and self._fits(cell, session, pid):
                if stop(pid) and self._fits(cell, session, pid):
                    return pid
                send(pid, signal.SIGCONT)
        return None

    def _fits(self, cell: Cell, session: Session, pid: int) -> bool:
        if not re.search(cell.method, title_of(pid)) or (cell.writing and not self._writes(cell, session, pid)):
            return False
        if cell.finished and not (session.run_dir / cell.finished).exists():
            return False
        if cell.stages or cell.round is not None:
            number, stage = session.place()
            if (cell.stages and stage not in cell.stages) or cell.round not in (None, number):
                return False
        return cell.rank is None or pid == _ranks(session).get(cell.rank)

    def _writes(self, cell: Cell, session: Session, pid: int) -> bool:
        pattern = cell.writing.replace("{pid}", str(pid))
        return any(re.search(pattern, path) for path in half_written(session.run_dir))

    def _judged(self, session: Session, ending: Ending, cells: Sequence[Cell]) -> dict[str, Any]:
        code, stderr = session.process.returncode, session.stderr
        if ending is Ending.HANG:
            return {**_NOTHING, "verdict": "hang"}
        if not any(cell.name in self._hits for cell in cells):
            return {**_NOTHING, "verdict": "missed"}
        if code == 0:
            compared = compare(self._reference.outcomes[self._world.num_rounds], session.run_dir)
            return {**compared, "verdict": "survived" if compared["digest_equal"] else "wrong result"}
        is_named = _NAMED_ERROR.search(stderr) and "Traceback" not in stderr
        return {**_NOTHING, "verdict": _STOPPED if is_named else "stop without a named error"}

    def _resumed(self, run_dir: Path, number: int) -> dict[str, Any]:
        """Resume a stopped run: the stop counts as bounded only if the run then continues."""
        session = Session(self._world, run_dir, number)
        ending = session.finish()
        if ending is Ending.HANG:
            session.abort()
        left = [*session.leftovers_after_exit(), *remove_folders(session.family.scratch)]
        if ending is not Ending.ENDED or session.process.returncode or left:
            return {**_NOTHING, "verdict": f"does not resume: {ending} {session.stderr[-600:]} {left}"}
        compared = compare(self._reference.outcomes[self._world.num_rounds], run_dir)
        return {**compared, "verdict": "bounded stop" if compared["digest_equal"] else "wrong result"}


def _ranks(session: Session) -> dict[int, int]:
    """Processes of the two trainer ranks. Rank 0 listens on one more port, the rendezvous."""
    pids = [pid for pid, title in session.titles.items() if KINDS["trainer"] in title]
    if len(pids) != 2:
        return {}
    first, second = sorted(pids, key=lambda pid: len(listening(pid)))
    return {1: first, 0: second} if len(listening(first)) < len(listening(second)) else {}
