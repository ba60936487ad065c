"""`start_node.sh` around a `ray` that only starts processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.paths import ROOT

SCRIPT = ROOT / "cluster" / "launch" / "start_node.sh"
_RAY = """#!/bin/sh
[ "$1" = start ] || exit 3
{python} -c 'import time; time.sleep(60)' >/dev/null 2>&1 &
echo $! >> {pids}
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `ray` starts a server and leaves; the servers are in `pids`."""
    ray = tmp_path / "ray"
    ray.write_text(_RAY.format(python=sys.executable, pids=tmp_path / "pids"))
    ray.chmod(0o755)
    yield tmp_path
    for server in servers(tmp_path):
        server.kill()


def start_node(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "RAY_AUTH_TOKEN": "token"}
    done = subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def servers(folder: Path) -> list[psutil.Process]:
    pids = (folder / "pids").read_text().split() if (folder / "pids").exists() else []
    return [psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))]


def test_stop_ends_what_the_script_has_started_and_no_other_ray(node: Path) -> None:
    assert start_node(node, "stop").startswith("nothing")
    subprocess.run([str(node / "ray"), "start"], check=True, timeout=30)
    (other,) = servers(node)
    start_node(node, "head", "6379")
    start_node(node, "head", "6380")
    assert len(servers(node)) == 3
    assert start_node(node, "stop") == "stopped 2 processes of this node\n"
    assert [server for server in servers(node) if server.status() != psutil.STATUS_ZOMBIE] == [other]
