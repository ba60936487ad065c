import os
import platform
import signal
import subprocess
import sys

import psutil
import pytest
import ray

from cluster.resources.connect import ClusterInfo, connected
from cluster.resources.head import version_problem
from tests.cluster.workers import wait_while
from tests.paths import ROOT

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def ray_processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_a_local_ray_has_what_was_asked_for(cluster: ClusterInfo) -> None:
    assert (cluster.num_nodes, cluster.cpus) == (1, 2)
    with connected(None, num_cpus=None, temp_dir=None, timeout_s=10) as again:
        assert again == cluster
    assert ray.is_initialized(), "a connection that was there before stays"


def test_workers_have_one_thread_and_nothing_listens_beyond_loopback(cluster: ClusterInfo) -> None:
    threads = ray.remote(num_cpus=0.1)(lambda: os.environ["OMP_NUM_THREADS"])
    assert ray.get(threads.remote(), timeout=30) == "1"
    pids = {process.pid for process in ray_processes()} | {os.getpid()}
    listening = [c for c in psutil.net_connections("inet") if c.pid in pids and c.status == psutil.CONN_LISTEN]
    assert listening
    assert {next(iter(connection.laddr)) for connection in listening} <= LOOPBACK


def test_joining_is_bounded_and_local_options_are_refused() -> None:
    """In a process of its own, as a process connects once."""
    script = """
import time
from pathlib import Path
from cluster.resources.connect import connected
from cluster.errors import AddressError
try:
    connected("127.0.0.1:1", num_cpus=2, temp_dir=Path("/tmp"), timeout_s=1).__enter__()
except AddressError as error:
    print("refused", error)
try:
    connected("127.0.0.1:1", num_cpus=None, temp_dir=None, timeout_s=1).__enter__()
except AddressError as error:
    print("bounded", error)
"""
    root = ROOT
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert "refused num_cpus, temp_dir can only be set for a local Ray" in done.stdout, done.stderr
    assert "bounded no Ray cluster answers at 127.0.0.1:1" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_started_ray_leaves_no_process() -> None:
    script = """
import psutil
from cluster.resources.connect import connected
with connected(None, num_cpus=1, temp_dir=None, timeout_s=60, object_store_bytes=128 * 1024**2):
    processes = psutil.Process().children(recursive=True)
_, alive = psutil.wait_procs(processes, timeout=10)
print("left", len(processes) > 2, alive)
"""
    root = ROOT
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert "left True []" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["raylet", "gcs_server", "driver"])
def test_a_ray_that_is_lost_while_it_starts_is_a_named_error_and_leaves_nothing(lost: str) -> None:
    """Ray's core ends the driver at once where it cannot register; otherwise what Ray raises is named. SIGTERM is the caller's."""
    script = """
import signal, sys
from cluster.resources.connect import connected
from cluster.errors import RayStartError
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with connected(None, num_cpus=1, temp_dir=None, timeout_s=60, object_store_bytes=128 * 1024**2):
        print("connected")
except RayStartError as error:
    sys.exit(f"error: {error}")
except KeyboardInterrupt:
    sys.exit("error: interrupted")
"""
    root = ROOT
    environment = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}  # Ray's own is a minute
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        driver = psutil.Process(started.pid)
        wait_while(lambda: not any(child.name() == "ray::IDLE" for child in driver.children(recursive=True)))
        family = driver.children(recursive=True)
        victim = driver if lost == "driver" else next(child for child in family if child.name() == lost)
        victim.send_signal(signal.SIGTERM if lost == "driver" else signal.SIGKILL)
        said, errors = started.communicate(timeout=120)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert said == ""
    assert started.returncode
    assert [line for line in errors.splitlines() if line.startswith("error: ")], errors


def test_a_cluster_of_another_ray_or_python_is_one_line() -> None:
    here = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    assert version_problem(here) == version_problem({}) == ""
    assert version_problem({**here, "ray_version": "2.9.0"}) == (
        f"runs Ray 2.9.0 with Python {platform.python_version()}, and this driver Ray {ray.__version__} with Python "
        f"{platform.python_version()}; install the same versions on both"
    )
