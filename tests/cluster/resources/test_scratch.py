"""Temp folders go with their owner, and those of dead owners with the next one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from cluster.resources.scratch import make_scratch, remove_dead, scratch_folder
from tests.cluster.workers import wait_while
from tests.paths import ROOT

_USING = "import sys, time; log = open(sys.argv[1] + '/log', 'w'); print('open', flush=True); time.sleep(float(sys.argv[2]))"


@pytest.fixture
def owner() -> str:
    return f"run {uuid4().hex}"


def using(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    """A process with an open log in `folder`."""
    process = subprocess.Popen([sys.executable, "-c", _USING, str(folder), str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


def test_a_folder_is_gone_after_its_block_once_nobody_uses_it(owner: str) -> None:
    with scratch_folder(owner) as folder:
        process = using(folder, 1.0)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    assert process.wait(10) == 0


def test_folders_of_a_dead_owner_are_removed_and_no_others(owner: str) -> None:
    dead, other = make_scratch(owner), make_scratch(f"not {owner}")
    (dead / "session" / "logs").mkdir(parents=True)
    remove_dead(owner)
    assert not dead.exists()
    assert other.exists()
    remove_dead(f"not {owner}")


def test_a_folder_that_a_process_still_uses_stays_until_that_has_ended(owner: str) -> None:
    dead = make_scratch(owner)
    process = using(dead, 60.0)
    began = time.monotonic()
    remove_dead(owner)
    assert time.monotonic() - began < 10
    assert dead.exists()
    assert process.poll() is None, "nothing is killed"
    process.kill()
    process.wait(10)
    with scratch_folder(owner):
        pass
    assert not dead.exists()


def test_the_path_is_short_enough_for_the_sockets_of_ray(owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a-long-name-for-a-temp-folder"))
    with scratch_folder(owner) as folder:
        socket = folder / "session_2026-11-22_23-43-17_738847_4194304" / "sockets" / "plasma_store"
        assert len(str(socket)) <= 107


def test_what_a_dead_driver_left_running_in_its_folder_is_ended(owner: str) -> None:
    dead = make_scratch(owner)
    start = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], stdout=subprocess.DEVNULL).pid)"
    said = subprocess.run([sys.executable, "-c", start, _USING, str(dead), "60"], stdout=subprocess.PIPE, check=True, timeout=30).stdout
    wait_while(lambda: not (dead / "log").exists())
    remove_dead(owner)
    assert not dead.exists()
    wait_while(lambda: psutil.pid_exists(int(said)))


def test_what_a_killed_process_left_running_in_its_folder_is_ended_at_once(owner: str) -> None:
    script = """
import subprocess, sys, time
from cluster.resources.scratch import scratch_folder
with scratch_folder(sys.argv[1]) as folder:
    print(subprocess.Popen([sys.executable, "-c", sys.argv[2], str(folder), "60"], stdout=subprocess.DEVNULL).pid, folder, flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script, owner, _USING]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stderr is not None
        pid, folder = killed.stdout.readline().split()
        wait_while(lambda: not (Path(folder) / "log").exists())
        killed.kill()
        said = killed.stderr.read()  # until the process that waited for it has ended as well
    assert said.startswith(f"error: process {killed.pid}, which worked on {owner!r}, died")
    assert not Path(folder).exists()
    wait_while(lambda: psutil.pid_exists(int(pid)))
