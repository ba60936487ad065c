"""The processes of one session of a run (one `vigc run` or `vigc resume`), found and ended from outside. Linux only.

A session is started in a working folder of its own, which everything that it starts inherits: driver, Ray's daemons, actors, the
MLflow mirror. Where one changes its folder, its environment still tells.
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
"""Environment variable that names a session's working folder."""

_PROC = Path("/proc")
_SHARED_MEMORY = Path("/dev/shm")
_SESSION_FOLDER = re.compile(r"(/[^\s=,\"]*/session_\d[\d_-]+)")
_STOP_S = 1.0
_LOOPBACK = ("127.", "::1", "::ffff:127.")

KINDS = {
    "driver": " -m loop r",
    "engine": "ray::EngineWorker",
    "filter": "ray::FilterWorker",
    "trainer": "ray::TrainerRank",
    "raylet": "/raylet/raylet",
    "gcs_server": "/gcs/gcs_server",
    "mirror": "loop.monitors.tracking_process",
}
"""What the command line of a process of this kind holds. Ray writes the method that runs behind the actor's name."""


@dataclass
class Family:
    """The processes that work in `folder`. Looking again costs a fraction of a millisecond per process of the machine."""

    folder: Path
    scratch: set[Path] = field(default_factory=set)
    """Temp folders of its Ray."""
    _members: dict[int, bool] = field(default_factory=dict)
    _shared_before: set[str] = field(default_factory=lambda: _shared_segments())

    def pids(self) -> list[int]:
        """Those that are there and are no zombies."""
        present = {int(name) for name in os.listdir(_PROC) if name.isdecimal()}
        known = {pid: member for pid, member in self._members.items() if pid in present}
        self._members = known | {pid: self._is_member(pid) for pid in present - known.keys()}
        return [pid for pid, member in self._members.items() if member and _lives(pid)]

    def titles(self) -> dict[int, str]:
        """Command lines by process; actors show the method that they run."""
        found = {pid: title for pid in self.pids() if (title := title_of(pid))}
        for title in found.values():
            self.scratch |= {_scratch_of(Path(name)) for name in _SESSION_FOLDER.findall(title)}
        return found

    def beyond_loopback(self) -> list[str]:
        """Addresses outside loopback on which one of them listens."""
        return [f"{address} ({title[:40]})" for pid, title in self.titles().items() for address in listening(pid) if not _is_local(address)]

    def wait_gone(self, timeout_s: float, kinds: tuple[str, ...] = ("",)) -> bool:
        """Whether, within the time, none is left whose command line holds one of `kinds`."""
        deadline = time.monotonic() + timeout_s
        while any(kind in title for title in self.titles().values() for kind in kinds):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def leftovers(self) -> list[str]:
        """What is still there of a session that is over: processes with the ports they hold, and shared memory."""
        processes = [f"process {pid} {title[:60]} {listening(pid)}" for pid, title in self.titles().items()]
        shared = [f"shared memory {name}" for name in sorted(_unmapped(_shared_segments() - self._shared_before))]
        return [*processes, *shared]

    def end(self) -> None:
        """Kill what is left."""
        for pid in self.pids():
            send(pid, signal.SIGKILL)

    def _is_member(self, pid: int) -> bool:
        try:
            return os.readlink(_PROC / str(pid) / "cwd") == str(self.folder) or f"{MARK}={self.folder}\0" in _read(pid, "environ")
        except OSError:
            return False


def title_of(pid: int) -> str:
    """The command line of a process; empty when it is gone."""
    return _read(pid, "cmdline").replace("\0", " ").strip()


def remove_folders(folders: set[Path]) -> list[str]:
    """Removes those that are there, and says which."""
    found = sorted(folder for folder in folders if folder.exists())
    for folder in found:
        shutil.rmtree(folder)
    return list(map(str, found))


def stop(pid: int) -> bool:
    """SIGSTOP; whether the process stands still now."""
    if not send(pid, signal.SIGSTOP):
        return False
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        state = _state(pid)
        if state in ("T", "t", ""):
            return bool(state)
    return False


def send(pid: int, signal_number: int) -> bool:
    """Whether the process was there to get the signal."""
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        return False
    return True


def heed_interrupts() -> None:
    """For a new process: a shell has what it runs in the background ignore SIGINT, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def listening(pid: int) -> list[str]:
    """Addresses, as HOST:PORT, on which a process listens."""
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.Error:
        return []
    return [f"{one.laddr.ip}:{one.laddr.port}" for one in connections if one.status == psutil.CONN_LISTEN]


def _is_local(address: str) -> bool:
    return address.startswith(_LOOPBACK)


def _lives(pid: int) -> bool:
    return _state(pid) not in ("", "Z", "X")


def _state(pid: int) -> str:
    """The letter that /proc gives; empty when the process is gone."""
    return "".join(_read(pid, "stat").rpartition(")")[2].split()[:1])


def _scratch_of(session: Path) -> Path:
    """What goes with Ray's session folder: the temp folder around it, unless that is the one that all of the machine's share."""
    return session if session.parent.name == "ray" else session.parent


def _read(pid: int, name: str) -> str:
    """A file of a process under /proc; empty when the process is gone or another user's."""
    try:
        return (_PROC / str(pid) / name).read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _shared_segments() -> set[str]:
    return set(os.listdir(_SHARED_MEMORY)) if _SHARED_MEMORY.is_dir() else set()


def _unmapped(names: set[str]) -> set[str]:
    """Those that no living process has in its memory: another process of this machine may have made its own meanwhile."""
    if not names:
        return names
    pids = [int(name) for name in os.listdir(_PROC) if name.isdecimal()]
    maps = "".join(_read(pid, "maps") for pid in pids)
    return {name for name in names if f"{_SHARED_MEMORY / name}" not in maps}
