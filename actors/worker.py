"""The engine worker: the actor that owns a device. Generator, corrector and evaluator borrow its one engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from actors.correction.corrector import Corrector
from actors.engines import EngineSpec, build_engine
from actors.engines.base import Attestation, Engine, WeightUpdate
from actors.engines.errors import EngineError
from actors.evaluator import EXACT, Evaluator
from actors.generator import Generator, GeneratorOptions
from actors.images import ImageSource, UntestedImages
from actors.shards import Shard, ShardImages, timed
from actors.views import find_view
from policies.correction.methods import CorrectionPolicy
from policies.decontamination.held_out import HeldOutImages
from policies.errors import running
from policies.records import HeldOutQuestion, Prediction, Record, from_table, to_table
from policies.scoring.answer_metrics import AnswerMetric


class EngineWorker:
    """A thin shell, run as a Ray actor by `cluster.fleet.slot`. Calling any method again gives the same result; only `preload`
    may run concurrently with another."""

    def __init__(
        self, spec: EngineSpec, generator: GeneratorOptions, correction: CorrectionPolicy, tested: HeldOutImages | None = None
    ) -> None:
        """`tested` are images that no record is generated about."""
        self._spec = spec
        self._tested = tested
        self._generator_options = generator
        self._correction = correction
        self._engine: Engine | None = None

    def ping(self) -> str:
        """The weight version being served; empty before the first swap."""
        return "" if self._engine is None else self._engine.weight_version

    def start(self) -> None:
        """Load the engine if it is not loaded."""
        if self._engine is None:
            self._engine = build_engine(self._spec)

    def preload(self, update: WeightUpdate) -> None:
        """Load and verify new weights while the engine serves; see `Engine.preload`."""
        self._running().preload(update)

    def swap(self, update: WeightUpdate) -> Attestation:
        """Serve new weights; see `Engine.swap`."""
        return self._running().swap(update)

    def sleep(self) -> None:
        """Release the device's memory; see `Engine.sleep`."""
        self._running().sleep()

    def write_records(self, shard: Shard) -> tuple[dict[str, float], pa.Table]:
        """Run VIG, then VIC, on a shard.

        Returns:
            the seconds that each took, and the records, one row per task.
        """
        seconds: dict[str, float] = {}
        images = self._images(shard)
        with timed(seconds, "generate"):
            generated = Generator(self._serving(), self._generator_options, images).generate(shard)
        return seconds, self._corrected(shard, generated, images, seconds)

    def correct_records(self, shard: Shard, read: Callable[[], pa.Table]) -> tuple[dict[str, float], pa.Table]:
        """Run VIC again on the records of a shard that was generated before, maybe with other weights.

        Args:
            shard: the shard.
            read: reads its records, one row per task, where the engine runs. What correction and filters made of them is dropped.

        Returns:
            as `write_records`.
        """
        generated = [record.as_generated() for record in from_table(read())]
        seconds: dict[str, float] = {}
        return seconds, self._corrected(shard, generated, self._images(shard), seconds)

    def evaluate(
        self, source: ImageSource, questions: Sequence[HeldOutQuestion], max_new_tokens: int, metric: AnswerMetric = EXACT
    ) -> list[Prediction]:
        """Answer held-out questions and score the answers."""
        return Evaluator(self._serving()).evaluate(source, questions, max_new_tokens, metric)

    def _images(self, shard: Shard) -> ShardImages:
        source = shard.source if self._tested is None else UntestedImages(shard.source, self._tested)
        return ShardImages(source, find_view(self._generator_options.view))

    def _corrected(self, shard: Shard, generated: list[Record], images: ShardImages, seconds: dict[str, float]) -> pa.Table:
        with timed(seconds, "correct"), running(f"correction policy {type(self._correction).__name__!r}", self._correction):
            return to_table(Corrector(self._serving(), self._correction, images).correct(shard, generated))

    def _running(self) -> Engine:
        if self._engine is None:
            raise EngineError("the engine has not been started")
        return self._engine

    def _serving(self) -> Engine:
        engine = self._running()
        if not engine.weight_version:
            raise EngineError("the engine has not completed a swap: it may not serve")
        return engine
