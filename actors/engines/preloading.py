"""Loads and verifies an update: during its swap, or ahead of it in another thread while the engine serves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from actors.engines.adapters.files import Adapter
from actors.engines.base import WeightUpdate
from actors.engines.errors import WeightMismatchError
from actors.engines.weights import TensorSpec, difference_of, digest_of, manifest_of, read_checkpoint
from actors.folders import local_path

T = TypeVar("T")


def load_update(update: WeightUpdate) -> dict[str, torch.Tensor]:
    """The tensors of an update from its checkpoint, tensors or stream; a stream's come through the object store.

    Raises:
        ValueError: it has none, or more than one, of a checkpoint, tensors, a stream and an adapter.
        WeightMismatchError: its checkpoint cannot be read.
        SwapError: its stream's sender does not answer; nothing has changed.
    """
    require_one_source(update)
    if update.checkpoint is not None:
        return read_checkpoint(local_path(update.checkpoint))
    if update.stream is not None:
        return update.stream.fetch(update.manifest.keys())
    assert update.tensors is not None
    return dict(update.tensors)


def require_one_source(update: WeightUpdate) -> None:
    """Raises:
    ValueError: an update has none, or more than one, of a checkpoint, tensors, a stream and an adapter.
    """
    if sum(source is not None for source in (update.checkpoint, update.tensors, update.stream, update.adapter)) != 1:
        raise ValueError(f"update {update.version} must carry exactly one of a checkpoint, tensors, a stream and an adapter")


def verify_base(update: WeightUpdate, adapter: Adapter, served_digest: str) -> None:
    """Check that an update's adapter belongs to the served base weights.

    Raises:
        WeightMismatchError: it is an adapter of another base.
    """
    if adapter.base_digest != served_digest:
        raise WeightMismatchError(
            f"update {update.version} is an adapter of a base with digest {adapter.base_digest}, and the engine serves a base with digest "
            f"{served_digest}; start the engine with the adapter's base"
        )


def verify(update: WeightUpdate, tensors: Mapping[str, torch.Tensor], served_manifest: Mapping[str, TensorSpec]) -> None:
    """Check that an update's tensors fit the served model and have the prepared digest. For engines that hash weights before serving.

    Raises:
        WeightMismatchError: a name is missing or unexpected, a shape or dtype differs (the message names the first tensor by
            name), or the digest differs.
    """
    verify_manifest(update, manifest_of(tensors), served_manifest)
    digest = digest_of(tensors)
    if digest != update.digest:
        raise WeightMismatchError(f"update {update.version} has digest {digest}; {update.digest} was prepared")


def verify_manifest(update: WeightUpdate, manifest: Mapping[str, TensorSpec], served_manifest: Mapping[str, TensorSpec]) -> None:
    """The cheap half of `verify`, which reads no weights.

    Raises:
        WeightMismatchError: a name is missing or unexpected, or a shape or dtype differs; names the first tensor by name.
    """
    if difference := difference_of(manifest, served_manifest):
        raise WeightMismatchError(f"update {update.version} does not fit: {difference}")


class Preloader(Generic[T]):
    """Holds at most one update that an engine has loaded ahead. `preload` may run in another thread than `take`."""

    def __init__(self, load: Callable[[WeightUpdate], T]) -> None:
        """`load` must load and verify an update without touching the served weights."""
        self._load = load
        self._lock = threading.Lock()
        self._preloaded: _Preloaded[T] | None = None
        self._last_taken = ("", "")

    def preload(self, update: WeightUpdate) -> None:
        """Load an update in place of the preloaded one, and keep the result or error for `take`. Does nothing if it is already preloaded
        or has already been swapped in."""
        with self._lock:
            if _key(update) == self._last_taken or (self._preloaded is not None and self._preloaded.key == _key(update)):
                return
            preloaded = self._preloaded = _Preloaded(_key(update))
        try:
            preloaded.loaded.set_result(self._load(update))
        except Exception as error:  # the swap raises it
            preloaded.loaded.set_exception(error)

    def take(self, update: WeightUpdate) -> T:
        """The result of `load` for an update: the preloaded one, waiting for it if it is still loading, else loaded now. Nothing is
        preloaded afterwards. Raises what `load` does."""
        with self._lock:
            preloaded, self._preloaded, self._last_taken = self._preloaded, None, _key(update)
        if preloaded is None or preloaded.key != _key(update):
            return self._load(update)
        return preloaded.loaded.result()


@dataclass(frozen=True, slots=True)
class _Preloaded(Generic[T]):
    key: tuple[str, str]
    loaded: Future[T] = field(default_factory=Future)


def _key(update: WeightUpdate) -> tuple[str, str]:
    return update.version, update.digest
