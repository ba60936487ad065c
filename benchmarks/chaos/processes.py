"""Finds and kills the processes of one session (one `vigc run` or `vigc resume`) from outside. Linux only.

A session starts in its own working folder, which all its processes inherit: driver, Ray's daemons, actors, the MLflow mirror. A process
that changes its folder is recognized by its environment.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "VIGC_CHAOS_SESSION"
"""Environment variable with the session's working folder."""

_PROC = Path("/proc")
_SHARED_MEMORY = Path("/dev/shm")
_SESSION_FOLDER = re.compile(r"(/[^\s=,\"]*/session_\d[\d_-]+)")
_STOP_S = 1.0
_LOOPBACK = ("127.", "::1", "::ffff:127.")

KINDS = {
    "driver": " -m loop r",
    "engine": "ray::EngineWorker",
    "filter": "ray::filter_shard",
    "trainer": "ray::TrainerRank",
    "raylet": "/raylet/raylet",
    "gcs_server": "/gcs/gcs_server",
    "mirror": "loop.monitors.tracking_process",
}
"""Text that identifies a kind of process in its command line. Ray appends the running method to the actor's name."""


@dataclass
class Family:
    """The processes that work in `folder`. A scan takes a fraction of a millisecond per process of the machine."""

    folder: Path
    scratch: set[Path] = field(default_factory=set)
    """Temp folders of the session's Ray."""
    _members: dict[int, bool] = field(default_factory=dict)
    _shared_before: set[str] = field(default_factory=lambda: _shared_segments())

    def pids(self) -> list[int]:
        """Ids of the running processes, without zombies."""
        present = {int(name) for name in os.listdir(_PROC) if name.isdecimal()}
        known = {pid: member for pid, member in self._members.items() if pid in present}
        self._members = known | {pid: self._is_member(pid) for pid in present - known.keys()}
        return [pid for pid, member in self._members.items() if member and _state(pid) not in ("", "Z", "X")]

    def titles(self) -> dict[int, str]:
        """Command lines by process id; actors show the running method."""
        found = {pid: title for pid in self.pids() if (title := title_of(pid))}
        for title in found.values():
            self.scratch |= {_scratch_of(Path(name)) for name in _SESSION_FOLDER.findall(title)}
        return found

    def beyond_loopback(self) -> list[str]:
        """Addresses outside loopback on which the processes listen."""
        return [
            f"{address} ({title[:40]})"
            for pid, title in self.titles().items()
            for address in listening(pid)
            if not address.startswith(_LOOPBACK)
        ]

    def wait_gone(self, timeout_s: float, kinds: tuple[str, ...] = ("",)) -> bool:
        """Wait until no process is left whose command line contains one of `kinds`; False on timeout."""
        deadline = time.monotonic() + timeout_s
        while any(kind in title for title in self.titles().values() for kind in kinds):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def leftovers(self) -> list[str]:
        """What a finished session has left: processes with their ports, and shared memory."""
        processes = [f"process {pid} {title[:60]} {listening(pid)}" for pid, title in self.titles().items()]
        shared = [f"shared memory {name}" for name in sorted(_unmapped(_shared_segments() - self._shared_before))]
        return [*processes, *shared]

    def end(self) -> None:
        """Kill all remaining processes."""
        for pid in self.pids():
            send(pid, signal.SIGKILL)

    def _is_member(self, pid: int) -> bool:
        try:
            return os.readlink(_PROC / str(pid) / "cwd") == str(self.folder) or f"{MARK}={self.folder}\0" in _read(pid, "environ")
        except OSError:
            return False


def title_of(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    return _read(pid, "cmdline").replace("\0", " ").strip()


def remove_folders(folders: set[Path]) -> list[str]:
    """Remove the folders that exist; returns their names."""
    found = sorted(folder for folder in folders if folder.exists())
    for folder in found:
        shutil.rmtree(folder)
    return list(map(str, found))


def stop(pid: int) -> bool:
    """Send SIGSTOP; returns whether the process is now stopped."""
    if not send(pid, signal.SIGSTOP):
        return False
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        state = _state(pid)
        if state in ("T", "t", ""):
            return bool(state)
    return False


def send(pid: int, signal_number: int) -> bool:
    """Send a signal; returns whether the process existed."""
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        return False
    return True


def restore_sigint() -> None:
    """For a new process: restore SIGINT, which background jobs of a shell inherit as ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def listening(pid: int) -> list[str]:
    """Addresses, as HOST:PORT, on which a process listens."""
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.Error:
        return []
    return [f"{one.laddr.ip}:{one.laddr.port}" for one in connections if one.status == psutil.CONN_LISTEN]


def _state(pid: int) -> str:
    """The state letter in /proc; empty if the process is gone."""
    return "".join(_read(pid, "stat").rpartition(")")[2].split()[:1])


def _scratch_of(session: Path) -> Path:
    """The folder to remove for a session of Ray: its temp folder, unless it is the machine's shared one."""
    return session if session.parent.name == "ray" else session.parent


def _read(pid: int, name: str) -> str:
    """A file of a process under /proc; empty if the process is gone or belongs to another user."""
    try:
        return (_PROC / str(pid) / name).read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _shared_segments() -> set[str]:
    return set(os.listdir(_SHARED_MEMORY)) if _SHARED_MEMORY.is_dir() else set()


def _unmapped(names: set[str]) -> set[str]:
    """Names that no living process has mapped: other processes of the machine may have created their own meanwhile."""
    if not names:
        return names
    pids = [int(name) for name in os.listdir(_PROC) if name.isdecimal()]
    maps = "".join(_read(pid, "maps") for pid in pids)
    return {name for name in names if f"{_SHARED_MEMORY / name}" not in maps}
