"""A run seen from outside, while it goes on: who of it others could talk to, and what it leaves where."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.loop.run.small_run import write_config
from tests.paths import ROOT

_EVERY_S = 0.5
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class SeenRun:
    """What a run printed and what was seen of it."""

    folder: Path
    """Where it was started."""
    printed: str
    num_looks: int
    open_ends: set[tuple[str, str, str]]
    """Sockets that others could talk to, TCP that listens and UDP: process, kind, address."""
    written: dict[str, set[str]]
    """Names in `folder` and in its `runs` and `home`, when it had ended."""
    code_changed: bool
    """Whether files of the code came or went."""

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / "small"


def see_run(folder: Path) -> SeenRun:
    """Start the small run in `folder`, in a home of its own, and look at it twice a second until it ends.

    It has two engines, which sleep while it trains. Runs with one engine, which does not sleep, are compared with it.
    """
    home = folder / "home"
    home.mkdir()
    config = write_config(folder, cluster={"sleep_while_training": True, "trainer_ranks": 1})
    code_before = _code()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "loop", "run", str(config), "--run-dir", "runs/small"]
    seen: set[tuple[str, str, str]] = set()
    num_looks = 0
    with (folder / "out").open("w") as out, (folder / "errors").open("w") as errors:
        driver = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=errors)
        try:
            while driver.poll() is None:
                seen |= {end for process in _family_of(driver.pid) for end in _open_ends(process)}
                num_looks += 1
                assert num_looks * _EVERY_S < _TIMEOUT_S, "the run does not end"
                with suppress(subprocess.TimeoutExpired):
                    driver.wait(_EVERY_S)
        finally:
            driver.kill()
    assert driver.returncode == 0, (folder / "errors").read_text()
    written = {inside: {path.name for path in (folder / inside).iterdir()} for inside in ("", "runs", "home")}
    return SeenRun(folder, (folder / "out").read_text(), num_looks, seen, written, _code() != code_before)


def _code() -> set[str]:
    return {str(path) for inside in ("loop", "actors") for path in (ROOT / inside).rglob("*")}


def _family_of(pid: int) -> list[psutil.Process]:
    try:
        driver = psutil.Process(pid)
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _open_ends(process: psutil.Process) -> Iterator[tuple[str, str, str]]:
    try:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN or one.type == socket.SOCK_DGRAM:
                yield process.name(), one.type.name, str(one.laddr.ip) if one.laddr else "0.0.0.0"
    except psutil.Error:  # it has ended meanwhile
        return
