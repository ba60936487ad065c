"""Manages Ray's temp folders, which are outside the run's folder. Their names identify the owner, so that the next process of this owner
removes what a dead one left behind.

A process that is killed cleans up nothing, nor does one that Ray's core aborts because its servers are lost: two of Ray's agents
then run for another minute. So a guard process, this file run as a script, waits for the death of the process that uses a folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

_MAX_ROOT_CHARS = 20
"""A unix socket's path has at most 107 characters: Ray needs 64 below its temp folder, and our folder's name 23."""

_END_S = 20.0
"""Longest wait for processes that use a folder and are about to end."""

_DEAD_S = 2.0
"""The same for processes of a dead owner, which have been killed; the next owner removes the folder if one does not end."""

_POLL_S = 0.1

_CLOSED = b"closed"
"""Tells the guard process that the folder was closed in order."""

_INIT_PID = 1
"""The new parent of a dead process's children."""


_in_use: set[Path] = set()
"""Folders of this process."""


def make_scratch(owner: str) -> Path:
    """Make an empty folder of `owner`, with a path short enough for Ray's sockets."""
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=_prefix(owner), dir=root if len(root) <= _MAX_ROOT_CHARS else "/tmp"))


@contextmanager
def scratch_folder(owner: str) -> Iterator[Path]:
    """A folder of `owner` that is removed after the block, once no process uses it, like folders that dead processes of `owner` left
    behind. If this process dies in the block, its remaining processes in the folder are killed and the folder is removed."""
    folder = make_scratch(owner)
    with _guarded(folder, owner):
        _in_use.add(folder)
        try:
            yield folder
        finally:
            _in_use.remove(folder)
            _end_orphans([folder])
            for each, process in _remove_unused(_folders_of(owner), _END_S).items():
                logger.warning("%s is still used by process %d and stays; remove it when that has ended", each, process.pid)


def remove_dead(owner: str) -> None:
    """Remove every folder of `owner` that no process uses, after killing orphaned processes that use one. Folders of this process stay.
    Call this only when no other process acts for that owner."""
    folders = [folder for folder in _folders_of(owner) if folder not in _in_use]
    _end_orphans(folders)
    _remove_unused(folders, _DEAD_S)


def guard(folder: Path, owner: str, pid: int) -> None:
    """Main function of `scratch_folder`'s guard process: wait until process `pid` has ended or has closed the folder."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a batch system may send it to every process; this one must outlive the driver
    if sys.stdin.buffer.read() == _CLOSED:
        return
    print(
        f"error: process {pid}, which worked on {owner!r}, died without cleaning up; its remaining processes are ended "
        "(a run continues with `vigc resume`, a training with `vigc train --resume`)", file=sys.stderr, flush=True,
    )  # fmt: skip
    deadline = time.monotonic() + _END_S
    while _end_orphans([folder], os.getppid()) and time.monotonic() < deadline:  # the new parent of this process is that of all others
        time.sleep(_POLL_S)
    _remove_unused([folder], 0.0)


@contextmanager
def _guarded(folder: Path, owner: str) -> Iterator[None]:
    command = [sys.executable, "-P", __file__, str(folder), owner, str(os.getpid())]
    waiting = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        waiting.communicate(_CLOSED, timeout=_END_S)


def _end_orphans(folders: Sequence[Path], parent: int = _INIT_PID) -> bool:
    """Kill processes that use one of the folders and have `parent` as their new parent; others may only be reading a log. Returns
    whether any process used one."""
    users = _users(folders)
    for process in users:
        with suppress(psutil.Error):
            if process.ppid() == parent:
                process.kill()
    return bool(users)


def _remove(folder: Path) -> None:
    """Another process may remove it at the same time."""
    while folder.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _folders_of(owner: str) -> list[Path]:
    roots = {Path(tempfile.gettempdir()), Path("/tmp")}
    found = [folder for root in roots for folder in root.glob(f"{_prefix(owner)}*")]
    return [folder for folder in found if folder.lstat().st_uid == os.getuid()]


def _remove_unused(folders: Sequence[Path], timeout_s: float) -> dict[Path, psutil.Process]:
    """Remove folders once no other process has a file open in them; returns those in use after `timeout_s`, each with a process."""
    deadline = time.monotonic() + timeout_s
    while (users := _users(folders)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    in_use = {folder: process for process, used in users.items() for folder in used}
    for folder in folders:
        if folder not in in_use:
            _remove(folder)
    return in_use


def _users(folders: Sequence[Path]) -> dict[psutil.Process, list[Path]]:
    """Processes with the folders that they use: Ray's servers and workers keep their logs open there."""
    users: dict[psutil.Process, list[Path]] = {}
    for process in psutil.process_iter() if folders else ():
        if process.pid == os.getpid():
            continue
        try:
            opened = [Path(file.path) for file in process.open_files()]
        except psutil.Error:  # it has ended, or is another user's
            continue
        if used := [folder for folder in folders if any(path.is_relative_to(folder) for path in opened)]:
            users[process] = used
    return users


def _prefix(owner: str) -> str:
    return f"vigc-{hashlib.sha256(owner.encode()).hexdigest()[:8]}-"


if __name__ == "__main__":
    guard(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
