"""Ray nodes with addresses of their own: each in a network namespace, joined by a bridge. Linux only, as root, with iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.paths import ROOT

PORT = 6399
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled"}
"""Of the nodes and of their driver: whether there is a token in the home folder makes no difference."""
STORE_BYTES = 100 * 1024**2
_OWN_ADDRESS = "10.77.0.250"


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
def ray_nodes(places: Sequence[Namespace], cpus: Sequence[int]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A Ray node in each namespace, the first one the head, whose address is `HEAD_ADDRESS:PORT`; its processes end with the block."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vg")))  # short, because sockets lie in it
        nodes = []
        for number, (place, num_cpus) in enumerate(zip(places, cpus, strict=True)):
            role = ["--head", "--port", str(PORT), "--include-dashboard", "false", "--temp-dir", str(folder / "ray")] if number == 0 else [
                "--address", f"{places[0].address}:{PORT}"
            ]  # fmt: skip
            options = ["--node-ip-address", place.address, "--num-cpus", str(num_cpus), "--object-store-memory", str(STORE_BYTES)]
            command = place.command(
                sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *role, *options
            )
            nodes.append(subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            stack.callback(_end, place, nodes[-1])
        yield nodes


def _end(place: Namespace, node: subprocess.Popen[bytes]) -> None:
    """Kills everything that runs in a namespace."""
    pids = subprocess.run(["ip", "netns", "pids", place.name], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["kill", "-KILL", *pids], check=False, capture_output=True)
    node.wait(20)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)
