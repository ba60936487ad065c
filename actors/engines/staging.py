"""Weights that are loaded and verified ahead of their swap, by another thread, while the engine serves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from actors.engines.base import WeightUpdate

T = TypeVar("T")


class Staging(Generic[T]):
    """What an engine has loaded ahead: one update at most. `stage` may run in another thread than `take`."""

    def __init__(self, load: Callable[[WeightUpdate], T]) -> None:
        """`load` loads and verifies an update, and touches nothing that is served."""
        self._load = load
        self._lock = threading.Lock()
        self._staged: _Staged[T] | None = None
        self._last_taken = ("", "")

    def stage(self, update: WeightUpdate) -> None:
        """Loads an update in place of what is staged, and keeps it, or why it is refused, for `take`. Does nothing where it is staged
        already, or has been overtaken by its own swap."""
        with self._lock:
            if _key(update) == self._last_taken or (self._staged is not None and self._staged.key == _key(update)):
                return
            staged = self._staged = _Staged(_key(update))
        try:
            staged.loaded.set_result(self._load(update))
        except Exception as error:  # whatever it is, it is the swap's to raise
            staged.loaded.set_exception(error)

    def take(self, update: WeightUpdate) -> T:
        """What `load` returns for an update: staged if it was, also if that is still going on, else loaded now. Nothing is staged
        afterwards. Raises what `load` does."""
        with self._lock:
            staged, self._staged, self._last_taken = self._staged, None, _key(update)
        if staged is None or staged.key != _key(update):
            return self._load(update)
        return staged.loaded.result()


@dataclass(frozen=True, slots=True)
class _Staged(Generic[T]):
    key: tuple[str, str]
    loaded: Future[T] = field(default_factory=Future)


def _key(update: WeightUpdate) -> tuple[str, str]:
    return update.version, update.digest
