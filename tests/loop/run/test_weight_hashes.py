"""A weight is hashed when it is written, when its folder is published, and when an engine serves it. No actor is started."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from actors.engines.transformers import TransformersEngine
from actors.engines.weights import num_bytes_of, read_checkpoint
from actors.images import ImageSource
from actors.training.core import run_local
from actors.training.job import Hyperparameters, Progress, TrainingJob, TrainingResult
from cluster.training.group import Bounds
from loop.run.stages.training import train
from loop.run.stages.training_set import Generated
from tests.loop.run.test_round_records import session_at

_SHA256 = hashlib.sha256


class LocalTrainer:
    """Trains in this process, as one rank."""

    def train(self, job: TrainingJob, source: ImageSource, bounds: Bounds, on_progress: Callable[[Progress], None]) -> TrainingResult:
        return run_local(job, source, on_progress=on_progress)


class CountingSha256:
    """SHA-256 that counts the bytes given to it, over all objects, in `counts[-1]`."""

    counts: ClassVar[list[int]] = []

    def __init__(self, data: bytes = b"") -> None:
        self._real = _SHA256()
        self.update(data)

    def update(self, data: bytes | memoryview) -> None:
        self.counts[-1] += memoryview(data).nbytes
        self._real.update(data)

    def digest(self) -> bytes:
        return self._real.digest()

    def hexdigest(self) -> str:
        return self._real.hexdigest()


def test_a_weight_is_hashed_once_where_it_is_written_published_and_served(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, num_bytes = TransformersEngine(model), num_bytes_of(read_checkpoint(model))
    with session_at(tmp_path / "run", model) as session:
        session.workers.trainer = LocalTrainer()  # type: ignore[assignment]
        start, hyper = session.models.base(), Hyperparameters(batch_size=1, num_steps=1, learning_rate=1e-3)
        monkeypatch.setattr(hashlib, "sha256", CountingSha256)
        counts = CountingSha256.counts = [0]
        trained = train(session.run, session.models, session.workers, 1, start, hyper, list)
        counts.append(0)
        update = session.workers._update(trained.model)
        counts.append(0)
        assert engine.swap(update).digest == trained.model.digest

        def read() -> list[Generated]:
            raise AssertionError("the training is finished")

        counts.append(0)
        assert train(session.run, session.models, session.workers, 1, start, hyper, read) == trained, "no record is read again"
    assert [round(count / num_bytes, 1) for count in counts[:3]] == [2.0, 0.0, 1.0], "by rank 0 and the store, by the driver, by the engine"
