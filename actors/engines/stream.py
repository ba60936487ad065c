"""Streams weights from a sender directly to an engine's workers, bypassing the file system and the object store.

    offer      describes the sender's weights; refused if their digest is not the one that was prepared
    open       prepares one transfer and describes how workers take part in it
    send       sends, while the workers receive
    fetch      returns tensors through the object store: all for engines without such workers, else those that the workers drop

The sender is an actor, `actors.engines.vllm.sender.Sender`. Every wait is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.engines.errors import SwapError, WeightMismatchError
from actors.engines.weights import TensorSpec

READ_S = 300.0
"""Time limit for a sender to start, read, digest and describe a checkpoint, or to return it."""
TRANSFER_S = 120.0
"""Time limit from the start of a transfer until the last tensor is loaded."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A sender's weights and their location."""

    manifest: Mapping[str, TensorSpec]
    """In the order of sending."""
    gpu: str
    """Hardware id of the GPU that holds the tensors; empty for main memory."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One transfer, in the terms of vLLM's weight-transfer interface."""

    backend: str
    """A name in vLLM's `WeightTransferEngineFactory`."""
    init_info: Mapping[str, Any]
    update_info: Mapping[str, Any]
    port: int | None
    """Where the sender waits for the workers; `None` if they read its memory."""


@dataclass(frozen=True, slots=True)
class WeightStream:
    """A source of weights, carried by an update in place of tensors."""

    sender: Any
    """Handle of the actor, which ends with its last reference, at the latest with the run."""

    def offer(self, digest: str) -> Offer:
        """The sender's offer of weights with this digest.

        Raises:
            WeightMismatchError: the sender has other weights, or cannot read them.
            SwapError: it does not answer; nothing has changed.
        """
        return _get(self.sender.offer.remote(digest), READ_S)

    def open(self, backend: str, digest: str, num_workers: int) -> Transfer:
        """Prepare the sender for `num_workers` workers. Raises what `offer` does."""
        return _get(self.sender.open.remote(backend, digest, num_workers), TRANSFER_S)

    def send(self, transfer: Transfer) -> ray.ObjectRef:
        """A reference that is ready when every worker has received all tensors, or the transfer has failed."""
        return self.sender.send.remote(transfer)

    def fetch(self, names: Set[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names. Raises what `offer` does."""
        return _get(self.sender.fetch.remote(set(names)), READ_S)


def choose_backend(sender_gpu: str, worker_gpus: Sequence[str]) -> str:
    """CUDA IPC within one GPU, NCCL between GPUs, else gloo: if a side is in main memory, or if only some workers share the
    sender's GPU, as NCCL does not support two ranks on one GPU. A GPU's id is empty for main memory."""
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
