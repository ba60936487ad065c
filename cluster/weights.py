"""Weight sync, the driver's side: a checkpoint becomes an update that engines can verify, apply and attest.

The engine's side (load, verify, digest) is `actors.engines.weights`; the order of steps is `cluster.fleet`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.engines.base import WeightUpdate
from actors.engines.weights import digest_of, manifest_of, read_checkpoint

Transport = Callable[[Path, str], WeightUpdate]
"""Makes an update out of a checkpoint folder and a weight version."""


@dataclass(frozen=True, slots=True)
class Published:
    """An update in the object store. Every engine is passed the same reference, so that its bytes reach a node once."""

    version: str
    digest: str
    ref: ray.ObjectRef


def by_checkpoint(checkpoint: Path, version: str) -> WeightUpdate:
    """The update carries the folder's path only; engines read it where they run."""
    tensors = read_checkpoint(checkpoint)
    return WeightUpdate(version, digest_of(tensors), manifest_of(tensors), checkpoint=checkpoint.absolute())


def by_object_store(checkpoint: Path, version: str) -> WeightUpdate:
    """The update carries the tensors; engines need no shared file system."""
    tensors = read_checkpoint(checkpoint)
    return WeightUpdate(version, digest_of(tensors), manifest_of(tensors), tensors=tensors)


TRANSPORTS: dict[str, Transport] = {"checkpoint": by_checkpoint, "object_store": by_object_store}
"""The only place where a transport's name becomes code."""


def prepare(checkpoint: Path, version: str, transport: str) -> WeightUpdate:
    """Reads a checkpoint's safetensors, digests them, and packs them for `transport`.

    Raises:
        ValueError: there is no such transport.
        WeightMismatchError: the checkpoint cannot be read.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"unknown weight transport {transport!r}; expected one of {sorted(TRANSPORTS)}")
    return TRANSPORTS[transport](checkpoint, version)


def publish(update: WeightUpdate) -> Published:
    """Puts an update into the object store once, for all engines and for those restarted later."""
    return Published(update.version, update.digest, ray.put(update))
