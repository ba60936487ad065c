"""Engines in this process that answer as a test says, behind what an evaluation asks of a fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from actors.engines.base import Request, WeightUpdate
from actors.worker import EngineWorker
from tests.actors.pipeline.scripted_engine import ScriptedEngine


@dataclass
class LocalEngines:
    """`serve` in place of `loop.models.serving.serving`. Tasks end in the opposite order, as they may on a fleet."""

    reply: Callable[[Request], str]
    fails_after: int | None = None
    """Tasks that end before the engines are lost."""
    num_started: int = 0
    asked: list[Request] = field(default_factory=list)

    @contextmanager
    def serve(self, update: WeightUpdate, engine: Any, cluster: Any, owner: str) -> Iterator[Any]:
        """One engine that serves the update."""
        self.num_started += 1
        scripted = ScriptedEngine(self.reply, weight_version=update.version)
        worker = SimpleNamespace(_serving=lambda: scripted)
        remote = SimpleNamespace(evaluate=SimpleNamespace(remote=partial(EngineWorker.evaluate, worker)))
        yield SimpleNamespace(weight_version=update.version, run=lambda tasks, submit: self._run(scripted, remote, tasks, submit))

    def _run(self, scripted: ScriptedEngine, remote: Any, tasks: Iterable[Any], submit: Callable[[Any, Any], Any]) -> Iterator[Any]:
        for number, task in enumerate(reversed(list(tasks))):
            if self.fails_after is not None and number >= self.fails_after:
                raise RuntimeError("the engines are lost")
            before = len(scripted.asked)
            result = submit(remote, task)
            self.asked += [request for request, _ in scripted.asked[before:]]
            yield task, result
