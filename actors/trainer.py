"""The trainer's actor: one rank of a training. `cluster.training.group` starts and supervises the ranks."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass

import ray

from actors.images import ImageSource
from actors.process.network import LOOPBACK
from actors.process.skipped_imports import skip_sklearn
from actors.training.job import Progress, TrainingJob, TrainingResult

_JOIN_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Address at which the ranks of a group join."""

    host: str
    port: int
    node_ids: tuple[str, ...]
    """Node of each rank."""


class TrainerRank:
    """One rank, a thin shell around `actors.training.core.Trainer`. Calling any method again gives the same result."""

    def __init__(self, rank: int, world_size: int, threads: int) -> None:
        self._rank = rank
        self._world_size = world_size
        self._threads = threads
        self._listener: socket.socket | None = None
        self._rendezvous: Rendezvous | None = None
        self._progress: Progress | None = None
        self._start_phase = "importing PyTorch"

    def rendezvous(self, *locations: tuple[str, int]) -> Rendezvous:
        """Rank 0 only: reserve a port for the group, on the loopback interface if all ranks are on one node.

        Args:
            locations: node id and process id of each rank, in order.
        """
        from actors.training.distributed import reserve_port

        if self._rendezvous is None:
            node_ids = tuple(node_id for node_id, _ in locations)
            host = LOOPBACK if len(set(node_ids)) == 1 else ray.util.get_node_ip_address()
            self._listener = reserve_port(host)
            self._rendezvous = Rendezvous(host, int(self._listener.getsockname()[1]), node_ids)
        return self._rendezvous

    def prepare(self, rendezvous: Rendezvous) -> None:
        """Do the heavy imports and join the group."""
        import torch

        from actors.training.distributed import join_process_group, prepare_deepspeed

        self._start_phase = "importing DeepSpeed"
        skip_sklearn()
        torch.set_num_threads(self._threads)
        os.environ.update(self._environment(rendezvous))
        prepare_deepspeed()
        address = LOOPBACK if rendezvous.host == LOOPBACK else ray.util.get_node_ip_address()
        self._start_phase = f"joining rank 0 at {rendezvous.host}:{rendezvous.port} from {address}"
        join_process_group(self._rank, self._world_size, rendezvous.host, rendezvous.port, address, self._listener, _JOIN_TIMEOUT_S)

    def train(self, job: TrainingJob, source: ImageSource) -> TrainingResult | None:
        """Run this rank's part of a job; see `Trainer.run`. The rank releases its memory afterwards, because engines may need it, except
        at ZeRO stage 3, whose memory only the end of the process frees."""
        from actors.process.memory import release_memory
        from actors.training.core import Trainer

        trainer = Trainer(job, source, rank=self._rank, world_size=self._world_size, on_progress=self._note)
        try:
            return trainer.run()
        finally:
            self._progress = None  # the next job's watch may ask before that job starts
            release_memory()

    def progress(self) -> Progress | None:
        """Progress of the running job; can be called while `train` runs."""
        return self._progress

    def start_phase(self) -> str:
        """What the rank is doing at start-up; can be called while `prepare` runs. Changes with every imported module."""
        return f"{self._start_phase} ({len(sys.modules)} modules)"

    def _note(self, progress: Progress) -> None:
        self._progress = progress

    def _environment(self, rendezvous: Rendezvous) -> dict[str, str]:
        own_node = rendezvous.node_ids[self._rank]
        # Ray makes only the process's own GPUs visible: use the first
        local_rank = 0 if os.environ["DS_ACCELERATOR"] == "cuda" else rendezvous.node_ids[: self._rank].count(own_node)
        return {
            "RANK": str(self._rank),
            "WORLD_SIZE": str(self._world_size),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(rendezvous.node_ids.count(own_node)),
            "MASTER_ADDR": rendezvous.host,
            "MASTER_PORT": str(rendezvous.port),
        }
