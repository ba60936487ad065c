"""Ray nodes with addresses of their own: each in a network namespace, joined by a bridge. Linux only, as root, with iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.paths import ROOT

PORT = 6399
JOBS_PORT = 8265
START_NODE = ROOT / "cluster" / "launch" / "start_node.sh"
WAIT_S = 60.0
STORE_BYTES = 100 * 1024**2
_OWN_ADDRESS = "10.77.0.250"
_INHERITED = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
"""As it is before tests run: a training in the process of a test leaves variables such as GLOO_SOCKET_IFNAME."""


@dataclass(frozen=True)
class Namespace:
    """A network namespace with one interface beside its loopback."""

    name: str
    interface: str
    address: str

    def command(self, *words: str) -> list[str]:
        """`words` as a command that runs inside."""
        return ["ip", "netns", "exec", self.name, *words]


@cache
def not_permitted() -> str:
    """Why this machine cannot have namespaces; empty if it can."""
    if shutil.which("ip") is None:
        return "needs the command `ip` (iproute2)"
    try:
        with namespaces(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted here: {error.stderr.strip()}"


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Namespaces that reach each other, and nothing else, for the duration of a `with` block."""
    tag = f"vg{os.getpid() % 10**6}"
    found = [Namespace(f"{tag}-{n}", f"{tag}n{n}", f"10.77.0.{n + 1}") for n in range(count)]
    switch = f"{tag}-switch"
    with ExitStack() as stack:
        for name in (switch, *(one.name for one in found)):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for n, one in enumerate(found):
            port = f"port{n}"
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", one.interface, "netns", one.name)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", one.name, "address", "add", f"{one.address}/24", "dev", one.interface)
            _ip("-n", one.name, "link", "set", one.interface, "up")
        yield found


@dataclass(frozen=True)
class RayNodes:
    """A running cluster."""

    head: Namespace
    environment: dict[str, str]
    """Of commands on the head: its home, with the token."""
    unshared: Path
    """A folder in which the head and its commands see other files than all other nodes."""

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    def run(self, *words: str, timeout_s: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the head, in the project's folder."""
        variables = {**self.environment, **environment}
        return subprocess.run(
            self.head.command(*words), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False
        )


@contextmanager
def joined(places: Sequence[Namespace]) -> Iterator[str]:
    """This machine's own namespace joins the others, for the duration of a `with` block; yields its address."""
    tag, _, _ = places[0].name.rpartition("-")
    switch, own, port = f"{tag}-switch", f"{tag}h", f"{tag}p"
    _ip("link", "add", own, "type", "veth", "peer", "name", port, "netns", switch)
    try:
        _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
        _ip("address", "add", f"{_OWN_ADDRESS}/24", "dev", own)
        _ip("link", "set", own, "up")
        yield _OWN_ADDRESS
    finally:
        _ip("link", "delete", own)


@contextmanager
def ray_nodes(places: Sequence[Namespace], cpus: Sequence[int]) -> Iterator[RayNodes]:
    """A cluster with a token, as `start_node.sh` makes it: a Ray node in each namespace, the first one the head. Every node has a home of
    its own. All processes end with the block."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vg")))  # short, because sockets lie in it
        own = [folder / "unshared", folder / "ray"]  # a node that unpacks a job's working folder would replace that of another
        for path in own:
            path.mkdir()
        homes = [folder / f"home{number}" for number in range(len(places))]
        address = f"{places[0].address}:{PORT}"
        for number, (place, num_cpus) in enumerate(zip(places, cpus, strict=True)):
            role = ["head", str(PORT), "--temp-dir", str(folder / "ray")] if number == 0 else ["worker", address]
            options = ["--node-ip-address", place.address, "--num-cpus", str(num_cpus), "--object-store-memory", str(STORE_BYTES)]
            command = ["bash", str(START_NODE), *role, "--block", *options]
            if number > 0:
                _await(token := homes[0] / ".ray" / "auth_token")
                shutil.copytree(token.parent, homes[number] / ".ray", ignore=lambda _, names: {*names} - {token.name})
                mount = 'mount -t tmpfs other "$1" && mount -t tmpfs other "$2" && shift 2 && exec "$@"'
                command = ["sh", "-c", mount, "sh", *map(str, own), *command]
            log = stack.enter_context((folder / f"node{number}.log").open("wb"))
            node = subprocess.Popen(place.command(*command), cwd=ROOT, env=_environment(homes[number]), stdout=log, stderr=log)
            stack.callback(_end, place, node)
        _await_jobs(places[0])
        yield RayNodes(places[0], _environment(homes[0]), own[0])


def _environment(home: Path) -> dict[str, str]:
    """Of a machine with that home: whether this one has a token makes no difference."""
    home.mkdir(exist_ok=True)
    return {**_INHERITED, "HOME": str(home)}


def _await(path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < deadline, f"{path} is not written"
        time.sleep(0.1)


def _await_jobs(place: Namespace) -> None:
    """Wait until the head's job server listens."""
    deadline = time.monotonic() + WAIT_S
    while f":{JOBS_PORT} " not in subprocess.run(place.command("ss", "-Hltn"), capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < deadline, "the job server of the head does not listen"
        time.sleep(0.1)


def _end(place: Namespace, node: subprocess.Popen[bytes]) -> None:
    """Kills everything that runs in a namespace."""
    pids = subprocess.run(["ip", "netns", "pids", place.name], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["kill", "-KILL", *pids], check=False, capture_output=True)
    node.wait(20)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)
