"""Trainer ranks that do not get beyond their start. Without torch, so that their processes start in a second."""

from __future__ import annotations

import os
import time
from pathlib import Path

from actors.training.job import RendezvousError
from cluster.errors import FinalError


class Mortal:
    """A trainer rank that dies while it starts."""

    def __init__(self, *_place: int) -> None:
        pass

    def rendezvous(self, *_locations: tuple[str, int]) -> str:
        return "here"

    def prepare(self, _rendezvous: str) -> None:
        os._exit(1)

    def start_phase(self) -> str:
        return "joining"

    def progress(self) -> None:
        return None


class Refused(Mortal):
    """A trainer rank that starts, and is then refused by the store; it notes each attempt in a folder."""

    def __init__(self, _rank: int, _world_size: int, _threads: int, folder: Path) -> None:
        self._folder = folder

    def prepare(self, _rendezvous: str) -> None:
        pass

    def train(self, *_job: object) -> None:
        (self._folder / f"attempt-{os.getpid()}").touch()
        raise FinalError("the store takes no more")


class Unreachable(Mortal):
    """A trainer rank; rank 0 cannot reach rank 1, which dies as soon as it is asked whether it lives."""

    def __init__(self, rank: int, _world_size: int, _threads: int, folder: Path) -> None:
        self._rank = rank
        self._refused = folder / "refused"

    def prepare(self, _rendezvous: str) -> None:
        if self._rank == 0:
            self._refused.touch()
            raise RendezvousError("connection refused")
        time.sleep(60)

    def start_phase(self) -> str:
        if self._rank == 1 and self._refused.exists():
            os._exit(1)
        return "joining"
