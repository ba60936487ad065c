"""Small real engine workers: they hold real tensors, verify and attest as engines do, and can be broken from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from safetensors.torch import save_file

from actors.engines.base import Attestation, WeightUpdate
from actors.engines.errors import EngineError, SwapError, UnfitModelError, WeightMismatchError
from actors.engines.preloading import Preloader, load_update, verify
from actors.engines.stream import Transfer
from actors.engines.vllm.gloo import BroadcastGroup
from actors.engines.weights import digest_of, manifest_of, num_bytes_of
from tests.cluster.marks import told_to


def weights(fill: float) -> dict[str, torch.Tensor]:
    return {"head.weight": torch.full((4, 3), fill), "norm.bias": torch.full((3,), -fill, dtype=torch.bfloat16)}


def update_of(tensors: dict[str, torch.Tensor], version: str, digest: str | None = None) -> WeightUpdate:
    return WeightUpdate(version, digest or digest_of(tensors), manifest_of(tensors), tensors=tensors)


def wait_while(holds: Callable[[], object], bound_s: float = 30) -> None:
    """Returns when it holds no more; a test that waits for nothing fails."""
    deadline = time.monotonic() + bound_s
    while holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def received(transfer: Transfer, rank: int = 1) -> dict[str, torch.Tensor]:
    """What a worker of this rank receives."""
    info, described = transfer.init_info, transfer.update_info
    group = BroadcastGroup(info["master_address"], info["master_port"], rank=rank, world_size=info["world_size"], timeout_s=20)
    dtypes = [getattr(torch, name) for name in described["dtype_names"]]
    tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in zip(described["shapes"], dtypes, strict=True)]
    for tensor in tensors:
        group.broadcast(tensor)
    group.finish()
    return dict(zip(described["names"], tensors, strict=True))


class Worker:
    """Serves one number: the first of its weights. `folder` is where tests leave marks that change what happens."""

    def __init__(self, index: int, folder: Path) -> None:
        self.index = index
        self.folder = folder
        self.tensors: dict[str, torch.Tensor] = {}
        self.version = ""
        self._preloader = Preloader(self._load)
        (folder / f"constructing_{index}").write_text(str(os.getpid()))
        hold = folder / f"hold_constructing_{index}_once"
        if hold.exists():
            hold.unlink()
            time.sleep(60)

    def start(self) -> None:
        if (self.folder / "unfit").exists():
            raise UnfitModelError("this model is run wrongly")
        self.tensors = weights(0.0)

    def ping(self) -> str:
        return self.version

    def preload(self, update: WeightUpdate) -> None:
        (self.folder / f"preloading_{self.index}_{update.version}").write_text(str(os.getpid()))
        self._preloader.preload(update)

    def swap(self, update: WeightUpdate) -> Attestation:
        started = time.monotonic()
        (self.folder / f"swapping_{self.index}_{update.version}").write_text(str(os.getpid()))
        wait_while((self.folder / f"hold_swap_{self.index}_{update.version}").exists)
        if self._told_to("break_swap", update):
            raise SwapError("half way")
        if self._told_to("refuse", update):
            raise WeightMismatchError(f"{update.version} does not fit")
        self.tensors, self.version = self._preloader.take(update), update.version
        served = dict(self.tensors)
        if self._told_to("lie", update):
            served["norm.bias"] = served["norm.bias"] + 1
        return Attestation(self.version, digest_of(served), num_bytes_of(served), time.monotonic() - started)

    def sleep(self) -> None:
        wait_while((self.folder / f"hold_sleep_{self.index}").exists)
        if told_to(self.folder / f"break_sleep_{self.index}"):
            raise EngineError("the device does not let go")
        self.tensors, self.version = {}, ""
        (self.folder / f"asleep_{self.index}").write_text(str(os.getpid()))

    def _load(self, update: WeightUpdate) -> dict[str, torch.Tensor]:
        (self.folder / f"loaded_{self.index}_{update.version}_{time.monotonic_ns()}").touch()
        wait_while((self.folder / f"hold_load_{self.index}_{update.version}").exists)
        tensors = load_update(update)
        verify(update, tensors, manifest_of(weights(0.0)))
        return tensors

    def _told_to(self, fault: str, update: WeightUpdate) -> bool:
        return told_to(self.folder / f"{fault}_{self.index}_{update.version}")

    def serve(self, task: int) -> tuple[int, str, float]:
        return task, self.version, float(self.tensors["head.weight"][0, 0])

    def again(self, served: tuple[int, str, float]) -> tuple[tuple[int, str, float], tuple[int, str, float], int]:
        """The second call of a chain: what the first one served, what this one does, and the engine."""
        return served, self.serve(served[0]), self.index

    def held(self, task: int) -> tuple[tuple[int, str, float], tuple[int, str, float], int]:
        """Ends when there is no mark that holds this engine's tasks."""
        wait_while((self.folder / f"hold_tasks_{self.index}").exists)
        return self.again(self.serve(task))

    def slow(self, task: int, seconds: float) -> tuple[int, int]:
        written = self.folder / f".working_{self.index}"
        written.write_text(str(os.getpid()))
        written.rename(self.folder / f"working_{self.index}")  # whoever reads it sees all of it
        time.sleep(seconds)
        return task, self.index

    def wait_for(self, pattern: str) -> None:
        """Ends when there is a mark of this pattern."""
        wait_while(lambda: not any(self.folder.glob(pattern)), bound_s=100)

    def greedy_once(self, task: int) -> tuple[int, str, float]:
        """Takes memory until its process is killed for it, once."""
        try:
            (self.folder / "greedy").touch(exist_ok=False)
        except FileExistsError:
            return self.serve(task)
        taken = []
        while True:
            taken.append(b"x" * 100 * 1024**2)
            time.sleep(0.05)

    def data_error(self, task: int) -> None:
        (self.folder / f"tried_{task}_{time.monotonic_ns()}").touch()
        raise ValueError(f"record {task} is broken")

    def flaky(self, task: int) -> int:
        mark = self.folder / f"flaky_{task}"
        if not mark.exists():
            mark.touch()
            raise OSError("the disk was busy")
        return self.index

    def always_fails(self, task: int) -> None:
        (self.folder / f"failed_{task}_on_{self.index}").touch()
        raise OSError("never works")

    def unfit_once(self, task: int) -> int:
        try:
            (self.folder / "unfit").touch(exist_ok=False)
        except FileExistsError:
            return task
        raise EngineError("the device has fallen off the bus")


class Doubler:
    """Another actor in a chain of calls."""

    def double(self, served: tuple[int, str, float]) -> float:
        return 2 * served[2]


class Relay:
    """Another actor that calls an engine twice by itself."""

    def shard(self, engine: ActorHandle, task: int) -> Any:
        first = ray.get(engine.serve.remote(task), timeout=20)
        return ray.get(engine.again.remote(first), timeout=20)


class SlowStart:
    """A trainer rank that gets on every second, three times."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def start_phase(self) -> str:
        return f"at step {min(3, int(time.monotonic() - self._began_s))}"
