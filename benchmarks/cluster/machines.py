"""Machines of a cluster on one real machine: each a network namespace with an address, a file system for its own data, and a Ray node.

Every machine sees an empty file system of its own at the same folder, which holds its home, its caches and its temporary files. It
vanishes with the last process of the machine. An S3 server on the real machine holds what they share. Linux only, as root, with
iproute2 and util-linux.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.chaos.processes import send, title_of
from benchmarks.chaos.world import ROOT
from tests.cluster.resources.namespaces import Namespace, joined, namespaces

BUCKET, REGION, KEY, SECRET = "runs", "us-east-1", "key", "secret"
_RAY_PORT = 6399
_S3_PORT = 9000
_STORE_BYTES = 150 * 1024**2
_DISK = "size=4g"
_WAIT_S = 60.0
_GONE_S = 20.0
_QUICK_HEALTH_CHECKS = {f"RAY_health_check_{name}": value for name, value in (("period_ms", "500"), ("timeout_ms", "2000"))}
"""Ray's own take 15 seconds and more to notice that a node is gone."""


@dataclass
class Machine:
    """One machine, whose Ray node runs or is lost."""

    place: Namespace
    folder: Path
    """Where the machine has its own file system."""
    num_cpus: int
    environment: dict[str, str]
    node: subprocess.Popen[bytes] | None = None
    log: Path = field(default_factory=Path)

    def start_node(self, head: Machine) -> None:
        """Start a Ray node on an empty file system, the head of the cluster if `head` is this machine."""
        role = (
            ["--head", "--port", str(_RAY_PORT), "--include-dashboard", "false", "--temp-dir", str(self.folder / "ray")]
            if head is self
            else ["--address", head.address]
        )
        options = ["--node-ip-address", self.place.address, "--num-cpus", str(self.num_cpus), "--object-store-memory", str(_STORE_BYTES)]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *role, *options]
        mount = 'mount -t tmpfs -o "$1" machine "$2" && mkdir "$2/home" "$2/tmp" && shift 2 && exec "$@"'
        command = self.place.command("sh", "-c", mount, "sh", _DISK, str(self.folder), *ray)
        with self.log.open("ab") as log:
            self.node = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        deadline, home = time.monotonic() + _WAIT_S, Path(f"/proc/{self.node.pid}/root{self.folder}/home")
        while not home.exists():  # before, `command` would enter the namespaces of this process
            if time.monotonic() > deadline:
                raise TimeoutError(f"machine {self.place.address} does not start; see {self.log}")
            time.sleep(0.02)

    @property
    def address(self) -> str:
        """`HOST:PORT` of the Ray head on this machine."""
        return f"{self.place.address}:{_RAY_PORT}"

    def command(self, *words: str) -> list[str]:
        """`words` as a command that runs beside the Ray node: with its network and its file system."""
        assert self.node is not None
        return ["nsenter", f"--target={self.node.pid}", "--mount", "--net", *words]

    def titles(self) -> dict[int, str]:
        """Command lines of the machine's processes by id; actors show the running method."""
        return {pid: title for pid in self._pids() if (title := title_of(pid))}

    def lose(self) -> None:
        """Kill everything that runs on the machine at once; its file system is gone with it."""
        deadline = time.monotonic() + _GONE_S
        while pids := self._pids():
            for pid in pids:
                send(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {pids} of machine {self.place.address} do not end")
            time.sleep(0.05)
        if self.node is not None:
            self.node.wait(_GONE_S)
            self.node = None

    def _pids(self) -> list[int]:
        network = os.stat(f"/var/run/netns/{self.place.name}").st_ino
        return [pid for pid in psutil.pids() if _network_of(pid) == network]


def _network_of(pid: int) -> int:
    """Inode of the network namespace of a process; 0 if the process is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


@dataclass(frozen=True)
class Machines:
    """A cluster: the first machine is the head, on which drivers run."""

    all: list[Machine]
    s3: str
    """URL of the S3 server."""

    @property
    def head(self) -> Machine:
        return self.all[0]

    @property
    def workers(self) -> list[Machine]:
        return self.all[1:]


@contextmanager
def machines(cpus: Sequence[int], logs: Path) -> Iterator[Machines]:
    """Machines with these CPUs and a bucket for their runs, for the duration of a `with` block. Ray's nodes write to `logs`."""
    with ExitStack() as stack:
        places = stack.enter_context(namespaces(len(cpus)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vg")))  # short, because sockets lie in it
        s3 = stack.enter_context(_object_store(stack.enter_context(joined(places)), logs / "s3.log"))
        found = [
            Machine(place, folder, num_cpus, environment(folder, s3), log=logs / f"machine-{number}.log")
            for number, (place, num_cpus) in enumerate(zip(places, cpus, strict=True))
        ]
        for machine in found:
            stack.callback(machine.lose)
            machine.start_node(found[0])
        yield Machines(found, s3)


def environment(folder: Path, s3: str) -> dict[str, str]:
    """Environment of the processes on a machine with its file system in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "XDG_CACHE_HOME")}
    own = {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "RAY_TMPDIR": str(folder / "ray"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    access = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": s3, "AWS_REGION": REGION}
    return {**inherited, **own, **access, **_QUICK_HEALTH_CHECKS, "RAY_AUTH_MODE": "disabled"}


@contextmanager
def _object_store(host: str, log: Path) -> Iterator[str]:
    """An S3 server of moto with an empty bucket; yields its URL."""
    url = f"http://{host}:{_S3_PORT}"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host", host, "--port", str(_S3_PORT)], stdout=output, stderr=output
        )
    try:
        _make_bucket(f"{url}/{BUCKET}")
        yield url
    finally:
        server.kill()
        server.wait(_GONE_S)


def _make_bucket(url: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return
