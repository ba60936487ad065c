"""One `vigc run` or `vigc resume`, watched from outside: its progress, the start of its work, and how it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.chaos.processes import KINDS, Family, restore_sigint, send
from benchmarks.chaos.world import World, environment, half_written

GONE_S = 30.0
"""Time limit for a session's processes to exit."""
HANG_S = 300.0
"""A session that neither ends nor reaches the awaited moment within this time hangs."""

_FINISHED = "rounds/**/*.json"
_LOOK_EVERY_S = 0.1
_FAST_POLL_S = 0.003
_WORKERS = tuple(KINDS.values())
"""Processes that exit immediately when the driver is killed."""
_WORKING = re.compile(r"ray::(EngineWorker\.(write_records|correct_records|evaluate)|filter_shard|TrainerRank\.(train|progress))")
_OPENING = re.compile(r"ray::EngineWorker\.(__init__|__ray_call__|start)|ray::TrainerRank\.(__init__|prepare)|ray::IDLE")


class Ending(StrEnum):
    REACHED = "reached"  # the awaited moment has come
    ENDED = "ended"  # the session has ended by itself
    HANG = "hang"


class Session:
    """A session, started on construction in its own working folder beside the run."""

    def __init__(self, world: World, run_dir: Path, number: int, overrides: Sequence[str] = ()) -> None:
        self.run_dir = run_dir
        self.folder = run_dir.parent / f"session-{number:03d}"
        self.folder.mkdir()
        self.family = Family(self.folder)
        self.work_after_s: float | None = None
        """Time until the first shard, evaluation or training step was in progress, or a part or commit was finished."""
        self.titles: dict[int, str] = {}
        self.beyond_loopback: list[str] = []
        self.left_before = set(half_written(run_dir))
        self._known_files = set(run_dir.glob(_FINISHED))
        self._looked_at = 0.0
        self.command = world.command(run_dir, overrides)
        with (self.folder / "stdout").open("w") as stdout, (self.folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment(self.folder), stdout=stdout, stderr=stderr, preexec_fn=restore_sigint
            )
        self.started = time.monotonic()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    def look(self) -> None:
        """Read the titles of the processes, at most every 0.1 s."""
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        self.titles = self.family.titles()
        if self.work_after_s is None and (
            any(map(_WORKING.search, self.titles.values())) or not self._known_files.issuperset(self.run_dir.glob(_FINISHED))
        ):
            self.work_after_s = self.age_s
            self.beyond_loopback = self.family.beyond_loopback()

    def watch(self, moment: Callable[[Session], bool], timeout_s: float, *, fast: bool = False) -> Ending:
        """Wait for a moment, the end of the session, or the timeout; `fast` polls every few milliseconds."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            self.look()
            if moment(self):
                return Ending.REACHED
            if time.monotonic() > deadline:
                return Ending.HANG
            time.sleep(_FAST_POLL_S if fast else _LOOK_EVERY_S / 2)
        return Ending.ENDED

    def finish(self, timeout_s: float = HANG_S) -> Ending:
        """Wait for the session to end."""
        return self.watch(lambda _: False, timeout_s)

    def place(self) -> tuple[int, str]:
        """The current round and stage, from the run folder and the last titles read."""
        number = len(list(self.run_dir.glob("rounds/*/commit.json")))
        return number, self._stage(self.run_dir / "rounds" / f"{number:04d}" / "parts", number)

    def _stage(self, parts: Path, number: int) -> str:
        titles = list(self.titles.values())
        if any("EngineWorker.swap" in title or "EngineWorker.preload" in title for title in titles):
            return "swap"
        if self.work_after_s is None:
            return self._opening_stage(titles)
        if number == 0:
            return "evaluate"
        for part, stage in (("selected", "generate"), ("training", "train"), ("predictions", "evaluate")):
            if not (parts / f"{part}.json").exists():
                return stage if self._actors_are_there(titles) else "finish"
        return "decide, commit"

    def _opening_stage(self, titles: list[str]) -> str:
        if any(map(_OPENING.search, titles)) or self._actors_are_there(titles):
            return "start actors"
        return "start Ray" if any(KINDS["gcs_server"] in title for title in titles) else "imports"

    def _actors_are_there(self, titles: list[str]) -> bool:
        return any(KINDS["engine"] in title for title in titles)

    def kill(self, *, with_all: bool = False) -> None:
        """SIGKILL the driver, or all known processes as if the machine went down; then wait, with a limit, for actors and Ray's
        daemons."""
        self.process.send_signal(signal.SIGKILL)
        for pid in self.titles if with_all else ():
            send(pid, signal.SIGKILL)
        self.process.wait(GONE_S)
        self.family.wait_gone(GONE_S, _WORKERS)

    def leftovers_after_exit(self) -> list[str]:
        """What is left after `GONE_S`; leftovers are then killed."""
        self.family.wait_gone(GONE_S)
        left = self.family.leftovers()
        self.family.end()
        return left

    def stacks(self) -> str:
        """The driver's stack traces, if py-spy is installed."""
        py_spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if py_spy is None:
            return "py-spy is not installed"
        dump = subprocess.run([py_spy, "dump", "--pid", str(self.process.pid)], capture_output=True, text=True, timeout=30, check=False)
        return dump.stdout[-4000:] + dump.stderr[-500:]

    def abort(self) -> None:
        """Kill a hanging session, including stopped actors."""
        for pid in self.family.pids():
            send(pid, signal.SIGKILL)
        self.process.wait(GONE_S)


def writes(session: Session) -> bool:
    """Whether a temporary file or folder of this session exists right now."""
    return not session.left_before.issuperset(half_written(session.run_dir))


def summary(session: Session) -> dict[str, Any]:
    """How a session ended, for the results."""
    return {"exit_code": session.process.returncode, "stderr": session.stderr[-1500:], "command": session.command[3]}
