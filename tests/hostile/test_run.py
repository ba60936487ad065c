"""A whole run seen from outside: nothing of it listens beyond loopback, and it writes where it is meant to and nowhere else."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torch.utils.cpp_extension import _get_build_directory

from tests.loop.small_run import ROOT, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EVERY_S = 0.5
WRITTEN = {"config.yaml", "home", "out", "runs"}


def family_of(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def open_ends(process: psutil.Process) -> Iterator[tuple[str, str, str]]:
    """Sockets of a process that others could talk to: TCP that listens, and UDP. (process, kind, address)"""
    try:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN or one.type == socket.SOCK_DGRAM:
                yield process.name(), one.type.name, str(one.laddr.ip) if one.laddr else "0.0.0.0"
    except psutil.Error:  # it has ended meanwhile
        return


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def listing(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_a_run_listens_on_loopback_alone_and_writes_where_it_is_meant_to(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    config = write_config(tmp_path, rounds=1)
    code_before = listing(ROOT / "loop") | listing(ROOT / "actors")
    built = Path(_get_build_directory("deepspeed_shm_comm", False)).parent  # another home is no reason to compile it again
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "TORCH_EXTENSIONS_DIR": str(built)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-m", "loop", "run", str(config), "--run-dir", "runs/small"]
        driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)
        seen: set[tuple[str, str, str]] = set()
        num_looks = 0
        while driver.poll() is None:
            seen |= {end for process in family_of(psutil.Process(driver.pid)) for end in open_ends(process)}
            num_looks += 1
            try:
                driver.wait(EVERY_S)
            except subprocess.TimeoutExpired:
                continue
    assert driver.returncode == 0, (tmp_path / "out").read_text()
    assert num_looks > 10
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in seen}, "what was looked at is no run with Ray"
    assert [end for end in seen if not is_loopback(end[2])] == []

    assert {path.name for path in tmp_path.iterdir()} == WRITTEN
    assert {path.name for path in (tmp_path / "runs").iterdir()} <= {"small", "mlflow.db", "mlartifacts"}
    # Ray keeps its token in .ray
    assert {path.name for path in home.iterdir()} <= {".cache", ".config", ".ray", ".triton"}
    assert listing(ROOT / "loop") | listing(ROOT / "actors") == code_before
