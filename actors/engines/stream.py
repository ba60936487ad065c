"""Weights that travel from a sender straight to an engine's workers, past the file system and the object store.

    offer      what the sender holds: it has digested it, and refuses if that is not what was prepared
    open       the sender gets ready for one transfer, and says how its workers take part in it
    send       begins the transfer, at the same time as the workers receive
    fetch      all tensors through the object store, for engines without such workers

The sender is an actor, `actors.engines.vllm.sender.Sender`. Every wait is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.engines.errors import SwapError, WeightMismatchError
from actors.engines.weights import TensorSpec

LOOPBACK = "127.0.0.1"
READ_S = 300.0
"""For a sender to start, read, digest and describe a checkpoint, or to hand it over."""
TRANSFER_S = 120.0
"""From when a transfer begins until the last tensor is loaded."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a sender holds, and where."""

    manifest: Mapping[str, TensorSpec]
    """In the order in which the tensors are sent."""
    gpu: str
    """The GPU that the tensors are on, by its hardware's id; empty for main memory."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One transfer, as vLLM's weight-transfer interface takes it."""

    backend: str
    """A name in vLLM's `WeightTransferEngineFactory`."""
    init_info: Mapping[str, Any]
    update_info: Mapping[str, Any]
    port: int | None
    """Where the sender waits for the workers; `None` where they read its memory."""


@dataclass(frozen=True, slots=True)
class WeightStream:
    """What an update carries instead of weights."""

    sender: Any
    """Handle of the actor. It ends when nothing refers to it any more, at the latest with the run."""
    digests: Mapping[str, str]
    """Digest of each tensor by name: `actors.engines.weights.digest_of` of it alone."""

    def offer(self, digest: str) -> Offer:
        """What the sender holds, whose digest is `digest`.

        Raises:
            WeightMismatchError: the sender holds other weights, or cannot read them.
            SwapError: it does not answer; nothing has changed.
        """
        return _get(self.sender.offer.remote(digest), READ_S)

    def open(self, backend: str, digest: str, num_workers: int) -> Transfer:
        """Have the sender get ready for `num_workers` workers. Raises what `offer` does."""
        return _get(self.sender.open.remote(backend, digest, num_workers), TRANSFER_S)

    def send(self, transfer: Transfer) -> ray.ObjectRef:
        """Ready when every worker has received all tensors, or the transfer has failed."""
        return self.sender.send.remote(transfer)

    def fetch(self) -> dict[str, torch.Tensor]:
        """All tensors. Raises what `offer` does."""
        return _get(self.sender.fetch.remote(), READ_S)


def choose_backend(sender_gpu: str, worker_gpus: Sequence[str]) -> str:
    """CUDA IPC within one GPU, NCCL between GPUs, else gloo: where a side is in main memory, and where some workers share the
    sender's GPU and some do not, as NCCL does not take two ranks on one GPU. A GPU's id is empty for main memory."""
    if sender_gpu and set(worker_gpus) == {sender_gpu}:
        return "ipc"
    if sender_gpu and all(worker_gpus) and sender_gpu not in worker_gpus:
        return "nccl"
    return "gloo"


def gpu_id(device: torch.device) -> str:
    """A GPU's hardware id, the same in every process; empty for the CPU."""
    return "" if device.type == "cpu" else str(torch.cuda.get_device_properties(device).uuid)


def _get(ref: ray.ObjectRef, timeout_s: float) -> Any:
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError as error:
        raise SwapError(f"the sender of weights did not answer within {timeout_s:g} s") from error
    except RayTaskError as error:
        if isinstance(error.cause, WeightMismatchError):
            raise WeightMismatchError(str(error.cause)) from error
        raise SwapError(f"the sender of weights failed: {error.cause}") from error
    except RayError as error:
        raise SwapError(f"the sender of weights is lost: {error}") from error
