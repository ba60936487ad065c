"""The engine worker: the actor that owns a device. Generator, corrector and evaluator borrow its one engine."""

from __future__ import annotations

from collections.abc import Sequence

from actors.correction.corrector import Corrector
from actors.engines import EngineSpec, build_engine
from actors.engines.base import Attestation, Engine, WeightUpdate
from actors.engines.errors import EngineError
from actors.evaluator import EXACT, Evaluator
from actors.generator import Generator, GeneratorOptions
from actors.images import ImageSource
from actors.shards import Shard, ShardImages, ShardResult, timed
from actors.views import find_view
from policies.correction.methods import CorrectionPolicy
from policies.errors import running
from policies.records import HeldOutQuestion, Prediction, from_table, to_table
from policies.scoring.answer_metrics import AnswerMetric


class EngineWorker:
    """A thin shell, run as a Ray actor by `cluster.fleet.slot`. Calling any method again gives the same result; only `stage`
    may run concurrently with another."""

    def __init__(self, spec: EngineSpec, generator: GeneratorOptions, correction: CorrectionPolicy) -> None:
        self._spec = spec
        self._generator_options = generator
        self._correction = correction
        self._engine: Engine | None = None
        self._images: tuple[tuple[int, int], ShardImages] | None = None

    def ping(self) -> str:
        """The weight version being served; empty before the first swap."""
        return "" if self._engine is None else self._engine.weight_version

    def start(self) -> None:
        """Load the engine if it is not loaded."""
        if self._engine is None:
            self._engine = build_engine(self._spec)

    def stage(self, update: WeightUpdate) -> None:
        """Load and verify new weights while the engine serves; see `Engine.stage`."""
        self._running().stage(update)

    def swap(self, update: WeightUpdate) -> Attestation:
        """Serve new weights; see `Engine.swap`."""
        return self._running().swap(update)

    def sleep(self) -> None:
        """Release the device's memory; see `Engine.sleep`."""
        self._images = None
        self._running().sleep()

    def generate(self, shard: Shard) -> ShardResult:
        """Run VIG on a shard."""
        seconds: dict[str, float] = {}
        with timed(seconds, "generate"):
            records = Generator(self._serving(), self._generator_options, self._images_of(shard)).generate(shard)
        return ShardResult(to_table(records), seconds)

    def correct(self, shard: Shard, generated: ShardResult) -> ShardResult:
        """Run VIC on what `generate` returned for the same shard."""
        seconds = dict(generated.seconds)
        with timed(seconds, "correct"), running(f"correction policy {type(self._correction).__name__!r}", self._correction):
            records = Corrector(self._serving(), self._correction, self._images_of(shard)).correct(shard, from_table(generated.records))
        return ShardResult(to_table(records), seconds)

    def evaluate(
        self, source: ImageSource, questions: Sequence[HeldOutQuestion], max_new_tokens: int, metric: AnswerMetric = EXACT
    ) -> list[Prediction]:
        """Answer held-out questions and score the answers."""
        return Evaluator(self._serving()).evaluate(source, questions, max_new_tokens, metric)

    def _images_of(self, shard: Shard) -> ShardImages:
        """The open images of a shard, kept from generation to correction."""
        key = (shard.round, shard.index)
        if self._images is None or self._images[0] != key:
            self._images = (key, ShardImages(shard.source, find_view(self._generator_options.view)))
        return self._images[1]

    def _running(self) -> Engine:
        if self._engine is None:
            raise EngineError("the engine has not been started")
        return self._engine

    def _serving(self) -> Engine:
        engine = self._running()
        if not engine.weight_version:
            raise EngineError("the engine has not completed a swap: it may not serve")
        return engine
