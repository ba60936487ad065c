"""Faults in actors and services: one of each kind, at each moment of its life, killed or made to hang."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos.drivers import Record, Reference, compare
from benchmarks.chaos.processes import KINDS, listening, remove_folders, send, stop, title_of
from benchmarks.chaos.session import HANG_S, Ending, Session, summary
from benchmarks.chaos.world import SHORT_BOUNDS, TRAINING_BOUNDS, World, half_written, new_folder

STOP_BOUND_S = 240.0
"""From a fault to the end of the run, whichever it is: a start, a task, a swap or a training that may take its whole time, twice."""
_ATTEMPTS = 3
"""Runs of a cell in which its moment may be missed: some last for milliseconds."""
_NAMED_ERROR = re.compile(r"^error: \S|\bCRITICAL +\w+Error: ", re.MULTILINE)
"""What `vigc` says as its last line, or what it logs when Ray is gone under it and nothing can be closed any more."""


@dataclass(frozen=True)
class Cell:
    """One fault at one moment. `method` is what the victim's title must match; `round` and `stages` are those of `Session.place`."""

    kind: str
    moment: str
    fault: signal.Signals
    method: str
    stages: tuple[str, ...] = ()
    round: int | None = None
    rank: int | None = None
    writing: str = ""
    """Pattern of a half-written file or folder that must be there, in which {pid} is the victim's."""
    meanwhile: str = ""
    """What a process of the session must show: rank 0's own title is lost to the calls that ask for its progress."""

    @property
    def name(self) -> str:
        return f"{self.kind if self.rank is None else f'trainer rank {self.rank}'}, {self.moment}, {self.fault.name}"

    @property
    def needs_mirror(self) -> bool:
        return self.kind == "mirror"


def matrix(pattern: str = ".") -> list[Cell]:
    """The cells whose name matches; `telling` are those of `TELLING`."""
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
"""Cells that a short run tries."""

_MIRROR_MOMENTS = {"constructing": ("generate",), "serving": ("train",), "closing": ("finish",)}
_DAEMON_MOMENTS = {"constructing": ("start actors",), "serving": ("generate",), "training": ("train",)}


def _engine(fault: signal.Signals) -> list[Cell]:
    title = r"^ray::EngineWorker"
    return [
        Cell("engine", "constructing", fault, rf"{title}\.(__init__|__ray_call__|start)"),
        Cell("engine", "idle", fault, rf"{title}$", ("train",)),
        Cell("engine", "serving", fault, rf"{title}\.(generate|correct)"),
        Cell("engine", "evaluating", fault, rf"{title}\.evaluate"),
        Cell("engine", "swapping at the start", fault, rf"{title}\.swap", round=0),
        Cell("engine", "swapping to the candidate", fault, rf"{title}\.(swap|stage)", round=1),
    ]


def _filter(fault: signal.Signals) -> list[Cell]:
    title = r"^ray::FilterWorker"
    return [
        Cell("filter", "constructing", fault, rf"{title}\.__init__"),
        Cell("filter", "idle", fault, rf"{title}$", ("start actors",)),
        Cell("filter", "serving", fault, rf"{title}\.filter"),
        Cell("filter", "writing", fault, title, writing=r"/\.records-.*\.{pid}-"),
    ]


def _trainer(fault: signal.Signals) -> list[Cell]:
    title = r"^ray::TrainerRank"
    cells = [
        cell
        for rank in (0, 1)
        for cell in (
            Cell("trainer", "constructing", fault, rf"{title}\.prepare", rank=rank),
            Cell("trainer", "idle", fault, rf"{title}$", ("generate",), rank=rank),
            Cell("trainer", "serving", fault, title, ("train",), rank=rank, meanwhile=rf"{title}\.train"),
        )
    ]
    return [*cells, Cell("trainer", "writing", fault, title, ("train",), rank=0, writing=r"^checkpoints/\.round-0001\.tmp\.")]


def try_matrix(folder: Any, reference: Reference, cells: list[Cell], repeats: int, record: Record, is_over: Callable[[], bool]) -> None:
    """Every cell `repeats` times, each in a run of its own of one round, until the budget is used up."""
    world = World.make(folder / "config", rounds=1, cluster=SHORT_BOUNDS, training=TRAINING_BOUNDS)
    for _ in range(repeats):
        for cell in cells:
            if is_over():
                return
            record("cell", Trial(world, reference, cell).result())


class Trial:
    """A run with one fault."""

    def __init__(self, world: World, reference: Reference, cell: Cell) -> None:
        self._world = world
        self._reference = reference
        self._cell = cell
        self._victim: tuple[int, str] | None = None

    def result(self) -> dict[str, Any]:
        """What came of it. A moment that was missed is tried again."""
        result = self._attempt()
        for _ in range(_ATTEMPTS - 1):
            if self._victim is None:
                result = self._attempt()
        return result

    def _attempt(self) -> dict[str, Any]:
        folder = new_folder(self._world.folder, "cell")
        overrides = () if self._cell.needs_mirror else ("tracking.enabled=false",)
        session = Session(self._world, folder / "run", 0, overrides)
        ending = session.watch(self._strike, HANG_S, fast=True)
        struck_at, place = time.monotonic(), session.place()
        if ending is Ending.REACHED:
            ending = session.finish(STOP_BOUND_S)
        result: dict[str, Any] = {
            "cell": self._cell.name, "victim": self._victim and self._victim[1][:120], "round": place[0], "stage": place[1],
            "ending": ending, "after_fault_s": round(time.monotonic() - struck_at, 2), "beyond_loopback": session.beyond_loopback,
        }  # fmt: skip
        if ending is Ending.HANG:
            result |= {"stacks": session.stacks(), "titles": list(session.titles.values())}
            session.abort()
        result |= {**summary(session), "leftovers": session.settled()}
        result |= self._judged(session, ending)
        result["scratch"] = remove_folders(session.family.scratch)
        if result["verdict"] in ("survived", "bounded stop", "missed"):
            shutil.rmtree(folder)
        return result

    def _strike(self, session: Session) -> bool:
        """Hits the victim if this is the moment. It is stopped first, so that what is looked at is what is hit."""
        shown = any(re.search(self._cell.meanwhile, title) for title in session.titles.values())
        if not shown or not self._is_time(*session.place()):
            return False
        for pid, title in session.titles.items():
            is_wanted = pid == session.process.pid if self._cell.kind == "driver" else KINDS[self._cell.kind] in title
            if not is_wanted or not self._fits(session, pid):
                continue
            if stop(pid) and self._fits(session, pid):
                self._victim = (pid, title_of(pid))
                send(pid, self._cell.fault)
                if self._cell.fault is not signal.SIGSTOP:
                    send(pid, signal.SIGCONT)
                return True
            send(pid, signal.SIGCONT)
        return False

    def _is_time(self, number: int, stage: str) -> bool:
        return (not self._cell.stages or stage in self._cell.stages) and self._cell.round in (None, number)

    def _fits(self, session: Session, pid: int) -> bool:
        cell = self._cell
        if not re.search(cell.method, title_of(pid)) or (cell.writing and not self._writes(session, pid)):
            return False
        return cell.rank is None or pid == _ranks(session).get(cell.rank)

    def _writes(self, session: Session, pid: int) -> bool:
        pattern = self._cell.writing.replace("{pid}", str(pid))
        return any(re.search(pattern, path) for path in half_written(session.run_dir))

    def _judged(self, session: Session, ending: Ending) -> dict[str, Any]:
        code, stderr = session.process.returncode, session.stderr
        nothing = {"digest_equal": False, "lost": 0, "doubled": 0}
        if ending is Ending.HANG:
            return {**nothing, "verdict": "hang"}
        if self._victim is None:
            return {**nothing, "verdict": "missed"}
        if code == 0:
            compared = compare(self._reference.outcomes[1], session.run_dir)
            return {**compared, "verdict": "survived" if compared["digest_equal"] else "wrong result"}
        if not _NAMED_ERROR.search(stderr) or "Traceback" in stderr:
            return {**nothing, "verdict": "stop without a named error"}
        return self._resumed(session)

    def _resumed(self, stopped: Session) -> dict[str, Any]:
        """A stop is a bounded one only if the run goes on afterwards."""
        session = Session(self._world, stopped.run_dir, 1)
        ending = session.finish()
        if ending is Ending.HANG:
            session.abort()
        left = [*session.settled(), *remove_folders(session.family.scratch)]
        if ending is not Ending.ENDED or session.process.returncode or left:
            return {"digest_equal": False, "lost": 0, "doubled": 0, "verdict": f"does not resume: {ending} {session.stderr[-600:]} {left}"}
        compared = compare(self._reference.outcomes[1], session.run_dir)
        return {**compared, "verdict": "bounded stop" if compared["digest_equal"] else "wrong result"}


def _ranks(session: Session) -> dict[int, int]:
    """Processes of the two trainer ranks: rank 0 holds the port at which they meet, beside those that both have."""
    pids = [pid for pid, title in session.titles.items() if KINDS["trainer"] in title]
    if len(pids) != 2:
        return {}
    first, second = sorted(pids, key=lambda pid: len(listening(pid)))
    return {1: first, 0: second} if len(listening(first)) < len(listening(second)) else {}
