"""VIGC's published inference compared with ours: same model, same images, same batch size, same greedy outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from actors.correction.corrector import Corrector
from actors.generator import Generator, GeneratorOptions
from actors.shards import Shard, ShardImages
from benchmarks.common import recorded, timed
from benchmarks.quality.published import AS_PUBLISHED, MAX_NEW_TOKENS, PublishedInference, PublishedRecord
from loop.models.seed.curriculum import served
from loop.sources.shapes.source import ShapesImages
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, GenerationTask, QuestionType
from policies.records import Record

_BATCH_SIZE = 64


@dataclass
class Measured:
    """One implementation, over `num_records` records."""

    generate_seconds: list[float] = field(default_factory=list)
    """VIG, per run."""
    correct_seconds: list[float] = field(default_factory=list)
    """VIC, per run."""
    images_seen: int = 0
    """Images through the vision tower in one run of VIG and VIC."""
    decoded_tokens: int = 0
    """Tokens decoded by VIC in one run."""
    kept_tokens: int = 0


@dataclass
class Comparison:
    """Both implementations on one model."""

    model: str
    num_records: int
    num_equal: int
    """Records with the same question and the same corrected answer."""
    num_compared: int
    """Records whose VIG output could be parsed."""
    published: Measured
    ours: Measured

    @property
    def speedup(self) -> float:
        """Of correction: ratio of the fastest runs."""
        return min(self.published.correct_seconds) / min(self.ours.correct_seconds)

    @property
    def whole_speedup(self) -> float:
        """Of generation and correction together."""
        published, ours = (
            min(one + two for one, two in zip(way.generate_seconds, way.correct_seconds, strict=True))
            for way in (self.published, self.ours)
        )
        return published / ours


def compare(name: str, checkpoint: Path, source: ShapesImages, runs: int = 3) -> Comparison:
    """Alternate both implementations, `runs` times each, on every image of `source` with one instruction of each type."""
    torch.set_num_threads(1)
    tasks = [GenerationTask(image_id, kind, CANONICAL_INSTRUCTIONS[kind]) for image_id in source.image_ids() for kind in QuestionType]
    published, ours = Measured(), Measured()
    plain = PublishedInference(checkpoint, _BATCH_SIZE)
    engine = served(checkpoint, batch_size=_BATCH_SIZE)
    shard = Shard(1, 0, 0, tuple(tasks), source)
    opened = {image_id: source.open(image_id) for image_id in source.image_ids()}
    given = [opened[task.image_id] for task in tasks], [task.instruction for task in tasks]
    expected: list[PublishedRecord] = []
    records: list[Record] = []
    for _ in range(runs):
        plain.work.decoded_tokens = plain.work.kept_tokens = 0
        with _counted(plain.model) as seen:
            expected = timed(published.generate_seconds, lambda: plain.generate(*given))
            timed(published.correct_seconds, lambda: plain.correct(*given, expected))  # noqa: B023
        published.images_seen = sum(seen)
        images = ShardImages(source)
        options = GeneratorOptions(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)
        with _counted(engine.model) as seen:
            written = timed(ours.generate_seconds, lambda: Generator(engine, options, images).generate(shard))  # noqa: B023
            with recorded(engine, "complete") as completions:
                records = timed(ours.correct_seconds, lambda: Corrector(engine, AS_PUBLISHED, images).correct(shard, written))  # noqa: B023
        ours.decoded_tokens = sum(len(completion.token_ids) for completion in completions)
        ours.images_seen = sum(seen)
    published.decoded_tokens, published.kept_tokens = plain.work.decoded_tokens, plain.work.kept_tokens
    answers = engine.tokenizer([record.answer for record in records], add_special_tokens=False)["input_ids"]
    ours.kept_tokens = sum(map(len, answers))
    read = [(one, two) for one, two in zip(expected, records, strict=True) if one.question]
    equal = sum(one.question == two.question and one.answer == two.answer for one, two in read)
    return Comparison(name, len(tasks), equal, len(read), published, ours)


@contextmanager
def _counted(model: torch.nn.Module) -> Iterator[list[int]]:
    """Collects the images per call of the model's vision tower."""
    seen: list[int] = []
    tower = next(module for name, module in model.named_modules() if name.endswith(("vision_tower", "vision_model")))
    embeddings = next(module for name, module in tower.named_modules() if name.endswith("embeddings"))
    handle = embeddings.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    try:
        yield seen
    finally:
        handle.remove()
