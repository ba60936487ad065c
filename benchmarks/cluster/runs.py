"""Runs on `machines`, started on the head as a user would, and watched from outside."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from benchmarks.chaos.world import CONFIG, ROOT, SHORT_BOUNDS, TRAINING_BOUNDS
from benchmarks.cluster.machines import BUCKET, KEY, REGION, SECRET, Machine, Machines
from loop.store.run_store import Store
from loop.store.selected import records_of
from loop.store.storage import open_storage

RUN_S = 600.0
"""Time limit of a run."""
NODE_WAIT_S = 60.0
"""How long a run waits for the nodes of its cluster, which start at the same time."""
_VERIFY_S = 120.0
_POLL_S = 0.01


def write_config(folder: Path, **changes: Any) -> Path:
    """The small run of the chaos tests, with engines and ranks on resources of their own; `changes` are merged into its sections."""
    cluster = {**SHORT_BOUNDS, "node_wait_s": NODE_WAIT_S, "colocated": False}
    own: list[dict[str, Any]] = [{"cluster": cluster, "training": TRAINING_BOUNDS, "tracking": {"enabled": False}}, changes]
    document: dict[str, Any] = copy.deepcopy(CONFIG)
    for each in own:
        for name, value in each.items():
            document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
    path = folder / f"config-{time.time_ns():x}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@dataclass
class Run:
    """A run on the head of a cluster, whose folder is on the head or in the bucket."""

    machines: Machines
    uri: str
    log: Path
    config: Path
    driver: subprocess.Popen[bytes] | None = None
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def in_bucket(cls, machines: Machines, config: Path, name: str, logs: Path) -> Run:
        return cls(machines, f"s3://{BUCKET}/{name}", logs / f"{name}.log", config)

    @classmethod
    def on_head(cls, machines: Machines, config: Path, name: str, logs: Path) -> Run:
        return cls(machines, str(machines.head.folder / name), logs / f"{name}.log", config)

    def start(self, *overrides: str) -> Run:
        """`vigc run` with dotted overrides."""
        address = f"cluster.address={self.machines.head.address}"
        self.driver = self.command("run", str(self.config), address, *overrides, "--run-dir", self.uri)
        return self

    def resume(self) -> Run:
        """`vigc resume`."""
        self.driver = self.command("resume", self.uri)
        return self

    def command(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A command of `vigc` on the head, whose output is appended to the log."""
        head = self.machines.head
        with self.log.open("ab") as log:
            return subprocess.Popen(
                head.command(sys.executable, "-m", "loop", *arguments), cwd=ROOT, env=head.environment, stdout=log, stderr=log
            )

    def finish(self) -> float:
        """Wait for the driver's end; returns the seconds since the run began. Raises `RuntimeError` if it failed."""
        assert self.driver is not None
        if code := self.driver.wait(RUN_S):
            raise RuntimeError(f"{self.uri} ended with {code}: {self.tail()}")
        return time.monotonic() - self._started

    def await_driver(self) -> None:
        """Wait for the driver's end, whatever it is."""
        assert self.driver is not None
        self.driver.wait(RUN_S)

    def kill_driver(self) -> None:
        """SIGKILL the driver, and leave everything else alone."""
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait(RUN_S)

    def verified(self) -> dict[str, Any]:
        """What `vigc verify --json` reports. Raises `RuntimeError` if it fails."""
        return self._ask("verify", self.uri, "--json")

    def seconds_of_round(self, number: int) -> float:
        """Wall-clock seconds of a committed round."""
        return Store.open(self._reached_at).commits()[number].stage_seconds["round"]

    def records(self) -> Counter[tuple[int, str]]:
        """How often each record, by round and id, was selected in a finished run in the bucket."""
        store = Store.open(self._reached_at)
        return Counter((commit.round, record.record_id) for commit in store.commits()[1:] for record in records_of(store, commit))

    def await_file(self, path: str) -> None:
        """Wait until the run in the bucket has a file. Raises `RuntimeError` if the driver ends before."""
        assert self.driver is not None
        deadline, storage = time.monotonic() + RUN_S, open_storage(self._reached_at)
        while storage.size(path) is None:
            if self.driver.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.uri}: no {path}; {self.tail()}")
            time.sleep(5 * _POLL_S)

    def await_title(self, *marks: str, machines: Iterable[Machine]) -> Machine:
        """The first of some machines on which a process has a title that contains one of `marks`. Raises `RuntimeError` if the run ends
        before."""
        assert self.driver is not None
        deadline, among = time.monotonic() + RUN_S, list(machines)
        while self.driver.poll() is None and time.monotonic() < deadline:
            for machine in among:
                if any(mark in title for title in machine.titles().values() for mark in marks):
                    return machine
            time.sleep(_POLL_S)
        raise RuntimeError(f"{self.uri}: no process was {' or '.join(marks)}; {self.tail()}")

    def tail(self, num_characters: int = 1500) -> str:
        return self.log.read_text(errors="replace")[-num_characters:]

    @property
    def _reached_at(self) -> str:
        """Where this process finds the run."""
        scheme, _, path = self.uri.rpartition("://")
        if scheme:
            access = urlencode({"endpoint_override": self.machines.s3, "region": REGION})
            return f"{scheme}://{KEY}:{SECRET}@{path}?{access}"
        node = self.machines.head.node
        assert node is not None
        return f"/proc/{node.pid}/root{path}"

    def _ask(self, *arguments: str) -> dict[str, Any]:
        head = self.machines.head
        command: Sequence[str] = head.command(sys.executable, "-m", "loop", *arguments)
        done = subprocess.run(command, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=_VERIFY_S, check=False)
        if done.returncode:
            raise RuntimeError(f"vigc {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-800:]} {done.stdout[-800:]}")
        return json.loads(done.stdout)
