"""Removes the shared memory of an engine's processes once they have ended, even if they were killed.

Segments of POSIX shared memory have a name and outlive the processes that made them. vLLM unlinks its own only in an orderly
shutdown, and Python's resource tracker, which would do it otherwise, is a child of the engine that Ray kills with it. So a
separate process watches.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

FOLDER = Path("/dev/shm")
_MADE_BY_VLLM = re.compile(rf"{FOLDER}/(?:psm_|vllm)[^/\s]*$")
"""Names from vLLM's executors: Python's own pattern, and that of the CPU build's collectives."""

_FIRST_LOOK_S, _LAST_LOOK_S = 0.1, 2.0
"""Interval of the checks: short after a new segment, since a starting engine makes its segments one after another."""

_END_S = 60.0
"""Longest wait for the other processes of an ended engine."""


def remove_when_ended(pid: int) -> None:
    """Start watching the segments of a process and its children; returns at once.

    The watching process has no parent that could end it, and keeps none of this process's files open.
    """
    forked = (
        "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL, start_new_session=True)"
    )
    command = [sys.executable, "-P", str(Path(__file__)), str(pid)]  # as a file: its package imports torch
    subprocess.run([sys.executable, "-S", "-c", forked, *command], check=True, timeout=_END_S, stdin=subprocess.DEVNULL)


def watch(pid: int) -> None:
    """Collect the segments of a process and its children until it ends; then remove those that no process uses."""
    try:
        engine = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    family, names, pause_s = {engine}, set[str](), _FIRST_LOOK_S
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        with suppress(psutil.NoSuchProcess):
            family |= {engine, *engine.children(recursive=True)}
        found = set(_segments_of(family))
        pause_s = min(_LAST_LOOK_S, 1.5 * pause_s) if found <= names else _FIRST_LOOK_S
        names |= found
        time.sleep(pause_s)
    psutil.wait_procs(family, timeout=_END_S)
    for name in names.difference(_segments_of(psutil.process_iter())):
        Path(name).unlink(missing_ok=True)


def _segments_of(processes: Iterable[psutil.Process]) -> Iterator[str]:
    """Paths of the segments mapped into processes, without processes that end meanwhile or belong to another user."""
    for process in processes:
        with suppress(OSError):
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                if found := _MADE_BY_VLLM.search(line):
                    yield found.group()


if __name__ == "__main__":
    watch(int(sys.argv[1]))
