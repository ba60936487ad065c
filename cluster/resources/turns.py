"""Runs on one cluster reserve their resources one after the other: if two did at once, each could hold half of what both need."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import NotEnoughResourcesError

log = logging.getLogger(__name__)

_NAME, _NAMESPACE = "reserves-resources", "vigc-loop"
_POLL_S = 0.5


class _Turn:
    """An actor whose name only one run can have at a time. Ray frees the name when the actor is killed, or when its driver has died."""


@contextmanager
def turn(timeout_s: float) -> Iterator[None]:
    """Waits until no other run reserves, and keeps others from it for the duration of the `with` block.

    Raises:
        NotEnoughResourcesError: another run has reserved all the time, for `timeout_s` seconds.
    """
    held = _taken(timeout_s)
    try:
        yield
    finally:
        ray.kill(held)


def is_taken() -> bool:
    """Whether a run reserves right now."""
    try:
        ray.get_actor(_NAME, _NAMESPACE)
    except ValueError:
        return False
    return True


def _taken(timeout_s: float) -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0)(_Turn).options(name=_NAME, namespace=_NAMESPACE, scheduling_strategy=here)
    deadline, is_shown = time.monotonic() + timeout_s, False
    while True:
        try:
            return actor.remote()
        except ActorAlreadyExistsError as error:
            if time.monotonic() >= deadline:
                raise NotEnoughResourcesError(
                    f"another run has been reserving resources on this cluster for {timeout_s:g} s; wait until it has started, or end it"
                ) from error
        if not is_shown:
            log.warning("another run on this cluster reserves its resources; waiting for it, at most %g s", timeout_s)
            is_shown = True
        time.sleep(_POLL_S * random.uniform(0.5, 1.5))
