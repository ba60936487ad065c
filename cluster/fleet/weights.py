"""The driver's side of weight sync: makes an update from a checkpoint, which engines verify, apply and attest.

The engine's side is `actors.engines.preloading` (load, verify) and `actors.engines.weights` (digest). `cluster.fleet.rolling` decides which
engine gets the update when. The driver knows the digest from when the weights were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from actors.engines.adapters.files import ADAPTER_FOLDER, Adapter, read_adapter
from actors.engines.base import WeightUpdate
from actors.engines.stream import READ_S, WeightStream
from actors.engines.vllm.sender import Sender
from actors.engines.weights import digest_of, manifest_of_checkpoint, read_checkpoint
from actors.folders import Folder, local_path, subfolder

_MAX_TRANSFERS = 64
"""Calls that a sender serves concurrently."""

SenderOptions = Mapping[str, Any]
"""Ray options of the actor that sends weights; only the `native` transport has one."""
Transport = Callable[[WeightUpdate, Folder, SenderOptions], WeightUpdate]
"""Adds to an update the way in which its bytes leave a checkpoint folder."""


@dataclass(frozen=True, slots=True)
class UpdateRef:
    """An update in the object store. All engines receive the same reference, so that its bytes are sent to each node once."""

    version: str
    digest: str
    ref: ray.ObjectRef


def by_checkpoint(update: WeightUpdate, checkpoint: Folder, _: SenderOptions) -> WeightUpdate:
    """The update carries only the folder, of which engines read the copy on their node, or the path that all nodes share."""
    return replace(update, checkpoint=_absolute(checkpoint))


def by_object_store(update: WeightUpdate, checkpoint: Folder, _: SenderOptions) -> WeightUpdate:
    """The update carries the tensors, which are read here; engines need no shared file system."""
    return replace(update, tensors=read_checkpoint(local_path(checkpoint)))


def by_native(update: WeightUpdate, checkpoint: Folder, sender_options: SenderOptions) -> WeightUpdate:
    """The update carries a handle of a new actor that sends the weights: over NCCL, CUDA IPC or gloo to vLLM's workers, through the
    object store to other engines. The actor ends when the update and all copies of it are gone.

    Without a share of a GPU in `sender_options` the actor reserves nothing, holds the weights in main memory and sends them over gloo.
    """
    # Restarts need no limit: only engines call the sender, and their restarts are limited.
    options = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": _MAX_TRANSFERS, **sender_options}
    actor: Any = ray.remote(Sender)
    sender = actor.options(**options).remote(_absolute(checkpoint))
    ready = sender.offer.remote(update.digest)
    ray.wait([ready], timeout=READ_S)  # else engines would wait for it out of service; they also raise its errors
    return replace(update, stream=WeightStream(sender))


def by_adapter(update: WeightUpdate, checkpoint: Folder, _: SenderOptions) -> WeightUpdate:
    """The update carries the adapter in the checkpoint's folder, for engines that were started with its base. A checkpoint without one is
    itself a base, of which nothing needs to be sent."""
    folder = subfolder(checkpoint, ADAPTER_FOLDER)
    adapter = Adapter(update.digest) if folder is None else read_adapter(local_path(folder))
    return replace(update, digest=adapter.digest, adapter=adapter)


def _absolute(folder: Folder) -> Folder:
    return folder.absolute() if isinstance(folder, Path) else folder


TRANSPORTS: dict[str, Transport] = {
    "checkpoint": by_checkpoint, "object_store": by_object_store, "native": by_native, "adapter": by_adapter
}  # fmt: skip
"""The only place where a transport's name becomes code."""


def prepare(
    checkpoint: Folder, version: str, transport: str, sender_options: SenderOptions | None = None, digest: str = ""
) -> WeightUpdate:
    """Describes a checkpoint by the headers of its safetensors, and packs it for `transport`. Only `native` uses `sender_options`. `digest`
    is what was computed when the weights were written; without it they are read and hashed here.

    Raises:
        ValueError: there is no such transport.
        WeightMismatchError: the checkpoint cannot be read.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"unknown weight transport {transport!r}; expected one of {sorted(TRANSPORTS)}")
    digest = digest or digest_of(read_checkpoint(local_path(checkpoint)))
    return TRANSPORTS[transport](WeightUpdate(version, digest, manifest_of_checkpoint(checkpoint)), checkpoint, sender_options or {})


def put_update(update: WeightUpdate) -> UpdateRef:
    """Puts an update into the object store once, for all engines and for those restarted later."""
    return UpdateRef(update.version, update.digest, ray.put(update))
