"""Admits nodes to a run: those that are there at its start, and those that join once a check on them has found nothing wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import short_message
from cluster.processes import READY_S

log = logging.getLogger(__name__)

NodeCheck = Callable[[], str]
"""Runs on a node; returns what is wrong there and what to do, or an empty text."""


class NodeGate:
    """Checks each node that is not known once, as a Ray task there."""

    def __init__(self, check: NodeCheck, known: Iterable[str]) -> None:
        """`known`: ids of nodes that need no check."""
        self._task: Any = ray.remote(num_cpus=0, max_retries=0)(_run)
        self._check = check
        self._verdicts = dict.fromkeys(known, True)
        self._asked: dict[str, ray.ObjectRef] = {}

    def admits(self, node: str) -> bool:
        """Whether actors may run on a node. Waits for nothing: a node whose check has not ended is not admitted yet."""
        if node in self._verdicts:
            return self._verdicts[node]
        if node not in self._asked:
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            self._asked[node] = self._task.options(scheduling_strategy=here).remote(self._check)
        if not ray.wait([self._asked[node]], timeout=0)[0]:
            return False
        problem = _result(self._asked.pop(node))
        if problem:
            log.warning("node %s has joined and is not used: %s", node[:12], problem)
        self._verdicts[node] = not problem
        return not problem


def _run(check: NodeCheck) -> str:
    return check()


def _result(ref: ray.ObjectRef) -> str:
    try:
        return ray.get(ref, timeout=READY_S)
    except RayError as error:
        return f"it cannot run this project: {short_message(error)}"
