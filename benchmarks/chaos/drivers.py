"""Kills of the driver: campaigns of `vigc run`, SIGKILL, `vigc resume`, SIGKILL, ... until the run is finished."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.processes import remove_folders
from benchmarks.chaos.session import HANG_S, Ending, Session, summary, writes
from benchmarks.chaos.world import (
    FileState,
    Outcome,
    World,
    check_commands,
    finished_files,
    half_written,
    lost_and_duplicated,
    new_folder,
    outcome_of,
)
from loop.errors import LoopError

STAGES = ("start Ray", "start actors", "evaluate", "generate", "train", "swap", "decide, commit", "finish")
_MAX_DELAY_S = 2.0
"""Maximum delay of a kill after the start of a stage."""
_MAX_WRITES = 6
"""Maximum number of writes to see before a kill."""
_EARLY = 0.5
"""Early kills fall into this share of the time to first work: imports, Ray, the first actors."""

Record = Callable[[str, dict[str, Any]], None]
"""Stores a result of a kind immediately."""


@dataclass
class Moment:
    """When to kill. `aim` is `clock`, `early`, a stage, or `write`. The writer may be an actor, so `write` kills all processes at once."""

    aim: str
    delay_s: float = 0.0
    """From the start of the session, or from the first sight of the stage."""
    writes: int = 1
    _seen_at: float | None = None
    _seen_writes: int = 0
    _was_writing: bool = field(default=False, repr=False)

    def reached(self, session: Session) -> bool:
        if self.aim in ("clock", "early"):
            return session.age_s >= self.delay_s
        if self.aim == "write":
            return self._write_reached(session)
        if self._seen_at is None and session.place()[1] == self.aim:
            self._seen_at = time.monotonic()
        return self._seen_at is not None and time.monotonic() >= self._seen_at + self.delay_s

    def _write_reached(self, session: Session) -> bool:
        is_writing = writes(session)
        self._seen_writes += is_writing and not self._was_writing
        self._was_writing = is_writing
        return is_writing and self._seen_writes >= self.writes


def draw(rng: random.Random, wall_s: float, work_after_s: float) -> Moment:
    """Draw a moment so that kills hit every stage, the middle of writes, and the beginning of a session."""
    aim = rng.choices(["clock", "early", "write", "stage"], [0.15, 0.2, 0.25, 0.4])[0]
    if aim == "clock":
        return Moment(aim, rng.uniform(0.0, wall_s))
    if aim == "early":
        return Moment(aim, rng.uniform(0.0, _EARLY * work_after_s))
    if aim == "write":
        return Moment(aim, writes=rng.randint(1, _MAX_WRITES))
    return Moment(rng.choice(STAGES), rng.uniform(0.0, _MAX_DELAY_S))


@dataclass
class Reference:
    """The undisturbed run."""

    outcomes: dict[int, Outcome]
    """Outcomes by number of rounds."""
    wall_s: float
    work_after_s: float


def undisturbed(folder: Path, record: Record, **changes: Any) -> tuple[World, Reference]:
    """The world of a campaign, and the result of an undisturbed run in it.

    Raises:
        RuntimeError: the undisturbed run failed.
    """
    world = World.make(new_folder(folder, "world") / "config", **changes)
    run_dir = new_folder(world.folder, "undisturbed") / "run"
    session = Session(world, run_dir, 0)
    ending, wall_s = session.finish(), session.age_s
    left = session.leftovers_after_exit()
    if ending is not Ending.ENDED or session.process.returncode:
        raise RuntimeError(f"the undisturbed run ended with {ending} {summary(session)}")
    assert session.work_after_s is not None
    outcomes = {world.num_rounds: outcome_of(run_dir)}
    for number in range(world.num_rounds, 1, -1):  # a shorter run has the same rounds without the last one
        shutil.rmtree(run_dir / "rounds" / f"{number:04d}")
        outcomes[number - 1] = outcome_of(run_dir)
    record("undisturbed", {
        "digest": outcomes[world.num_rounds].digest, "wall_s": wall_s, "work_after_s": session.work_after_s, "leftovers": left,
        "scratch": remove_folders(session.family.scratch), "beyond_loopback": session.beyond_loopback,
        "num_records": sum(map(len, outcomes[world.num_rounds].record_ids.values())),
    })  # fmt: skip
    return world, Reference(outcomes, wall_s, session.work_after_s)


def campaigns(
    world: World, reference: Reference, num_kills: int, per_campaign: int, seed: int, record: Record, is_over: Callable[[], bool]
) -> None:
    """Kill runs, at most `per_campaign` times each, until `num_kills` is reached or the budget is used up."""
    number, done = 0, 0
    while done < num_kills and not is_over():
        campaign = Campaign(world, reference, random.Random(f"{seed}/{number}"), record, number)
        done += campaign.play(min(per_campaign, num_kills - done), is_over)
        number += 1


class Campaign:
    """One run, killed repeatedly and then run to its end. Every other campaign is mirrored to MLflow."""

    def __init__(self, world: World, reference: Reference, rng: random.Random, record: Record, number: int) -> None:
        self._world = world
        self._reference = reference
        self._rng = rng
        self._record = record
        self._number = number
        self._folder = new_folder(world.folder, "campaign")
        self._run_dir = self._folder / "run"
        self._finished: dict[str, FileState] = {}
        """Every finished file seen so far; none may change."""
        self._sessions: list[Session] = []
        self._overrides = () if number % 2 else ("tracking.enabled=false",)

    def play(self, num_kills: int, is_over: Callable[[], bool]) -> int:
        """Kill up to `num_kills` times or until the run is finished; returns the number of kills."""
        checked_at = self._rng.randrange(num_kills)
        for done in range(num_kills):
            if is_over():
                break
            moment = draw(self._rng, self._reference.wall_s, self._reference.work_after_s)
            session = self._begin()
            ending = session.watch(moment.reached, HANG_S, fast=moment.aim == "write")
            if ending is not Ending.REACHED:
                self._close(session, ending, done)
                return done
            self._kill(session, moment, with_commands=done == checked_at)
        else:
            done = num_kills
        session = self._begin()
        self._close(session, session.finish(), done)
        return done

    def _begin(self) -> Session:
        self._sessions.append(Session(self._world, self._run_dir, len(self._sessions), self._overrides))
        return self._sessions[-1]

    def _kill(self, session: Session, moment: Moment, *, with_commands: bool) -> None:
        titles = [title[:60] for title in session.titles.values() if title.startswith("ray::")]
        session.kill(with_all=moment.aim == "write")
        number, stage = session.place()
        visible = set(self._run_dir.glob("rounds/*/parts/records-*.parquet"))
        torn = half_written(self._run_dir)
        redone = self._changed_files()
        finished = finished_files(self._run_dir)
        half_done = [path for path in visible if str(path.relative_to(self._run_dir)) not in finished]
        problems = check_commands(self._run_dir) if with_commands and (self._run_dir / "run.json").exists() else []
        self._record("kill", {
            "campaign": self._number, "session": session.command[3], "aim": moment.aim, "after_s": round(session.age_s, 2),
            "round": number, "stage": stage, "titles": titles, "work_after_s": session.work_after_s, "half_written": torn,
            "step_checkpoints": sorted(path.name for path in self._run_dir.glob("checkpoints/*.steps/step-*[0-9]")),
            "finished_files": len(finished), "finished_redone": redone, "shards_redone": len(half_done) + _num_working(titles),
            "problems": problems, "beyond_loopback": session.beyond_loopback, "leftovers": session.leftovers_after_exit(),
        })  # fmt: skip
        self._finished |= finished

    def _changed_files(self) -> list[str]:
        """Files that were finished at an earlier kill and have changed since."""
        now = finished_files(self._run_dir)
        return sorted(name for name, state in self._finished.items() if now.get(name) != state)

    def _close(self, session: Session, ending: Ending, num_kills: int) -> None:
        """End the run and compare it with the undisturbed one."""
        result: dict[str, Any] = {"campaign": self._number, "kills": num_kills, "ending": ending, "wall_s": round(session.age_s, 2)}
        result |= {"work_after_s": session.work_after_s, "beyond_loopback": session.beyond_loopback}
        if ending is Ending.HANG:
            result |= {"stacks": session.stacks(), "titles": list(session.titles.values())}
            session.abort()
        result |= summary(session)
        result |= {"finished_redone": self._changed_files(), **self._compare(ending, session)}
        result |= {"leftovers": session.leftovers_after_exit(), "scratch": remove_folders(self._scratch())}
        self._record("ending", result)
        if result["digest_equal"] and not result["finished_redone"]:
            shutil.rmtree(self._folder)

    def _compare(self, ending: Ending, session: Session) -> dict[str, Any]:
        if ending is not Ending.ENDED or session.process.returncode:
            return {"digest_equal": False, "lost": 0, "doubled": 0}
        return compare(self._reference.outcomes[self._world.num_rounds], self._run_dir)

    def _scratch(self) -> set[Path]:
        return {folder for session in self._sessions for folder in session.family.scratch}


def compare(expected: Outcome, run_dir: Path) -> dict[str, Any]:
    """Compare a finished run with the undisturbed one."""
    try:
        found = outcome_of(run_dir)
    except (AssertionError, LoopError) as error:  # an unreadable run is a finding, and the campaign continues
        return {"digest_equal": False, "lost": 0, "doubled": 0, "unreadable": f"{type(error).__name__}: {error}"}
    lost, doubled = lost_and_duplicated(expected, found)
    return {"digest_equal": found.digest == expected.digest, "lost": lost, "doubled": doubled}


def _num_working(titles: list[str]) -> int:
    """Number of engines and filters working on a shard."""
    return sum(any(method in title for method in (".write_records", ".correct_records", "filter_shard")) for title in titles)
