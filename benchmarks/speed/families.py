"""Every family on the transformers engine, compared with VIGC's published inference by the model's own `generate` in batches.

    python -m benchmarks.speed.families [FAMILY ...]

The models are the small untrained ones of `tests/actors/engines`, built from the real classes with their real processors. Both ways decode
greedily, so that VIG must write the same text. What the models write means nothing, so VIC answers given questions.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from actors.correction.corrector import Corrector
from actors.engines.families import family_of
from actors.generator import Generator, GeneratorOptions
from actors.processors import load_processor
from actors.shards import Shard, ShardImages
from benchmarks.common import argument_parser, recorded, timed, write_results
from benchmarks.quality.published import AS_PUBLISHED, MAX_NEW_TOKENS, PublishedInference, PublishedRecord
from loop.models.seed.curriculum import served
from loop.sources.shapes.source import ShapesImages
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, GenerationTask, QuestionType
from tests.actors.engines.families import FAMILIES, count_pixels

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Row:
    """One family; seconds of the fastest run."""

    family: str
    way: str
    """The class of `actors.engines.families` that runs it."""
    num_records: int
    num_equal: int
    """Records for which VIG wrote the same text in both ways."""
    looks_per_record: float
    """Images through the vision tower in VIG and VIC together; published inference looks five times."""
    generate_seconds: tuple[float, float]
    """VIG, published and ours."""
    correct_seconds: tuple[float, float]
    """VIC, published and ours."""


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "families.json")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"by default all of {', '.join(FAMILIES)}")
    parser.add_argument("--images", type=int, default=8, help="three records each")
    parser.add_argument("--runs", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for family in args.families or FAMILIES:
        with tempfile.TemporaryDirectory(prefix="vigc-families-") as scratch:
            rows.append(compare(family, FAMILIES[family][0](Path(scratch)), ShapesImages(5001, 0.0, 0.6, args.images), args.runs))
    print_rows(rows)
    write_results(args.out, rows)


def compare(family: str, checkpoint: Path, source: ShapesImages, num_runs: int) -> Row:
    """Alternate both ways on every image of `source` with one question of each type."""
    plain, engine = PublishedInference(checkpoint, _BATCH_SIZE), served(checkpoint, batch_size=_BATCH_SIZE)
    tasks = tuple(GenerationTask(image_id, kind, CANONICAL_INSTRUCTIONS[kind]) for image_id in source.image_ids() for kind in QuestionType)
    shard, questions = (
        Shard(1, 0, 0, tasks, source),
        [f"What is at the {place}?" for place in ("center", "left", "top")] * source.num_images,
    )
    given = [source.open(task.image_id) for task in tasks], [task.instruction for task in tasks]
    seconds: list[list[float]] = [[], [], [], []]
    plain_pixels, our_pixels = count_pixels(plain.model), count_pixels(engine.model)
    once, num_equal = 0, 0
    for _ in range(num_runs):
        before = sum(plain_pixels)
        with recorded(plain, "_texts") as texts:
            timed(seconds[0], lambda: plain.generate(*given))
        once = sum(plain_pixels) - before
        expected = [PublishedRecord(question, "") for question in questions]
        timed(seconds[2], lambda: plain.correct(*given, expected))  # noqa: B023
        images, options = ShardImages(source), GeneratorOptions(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)
        written = timed(seconds[1], lambda: Generator(engine, options, images).generate(shard))  # noqa: B023
        asked = [replace(record, question=question) for record, question in zip(written, questions, strict=True)]
        timed(seconds[3], lambda: Corrector(engine, AS_PUBLISHED, images).correct(shard, asked))  # noqa: B023
        num_equal = sum(text == record.generated_text.strip() for text, record in zip(texts, written, strict=True))
    way = type(family_of(engine.model, load_processor(checkpoint))).__name__
    best = [min(one) for one in seconds]
    return Row(family, way, len(tasks), num_equal, sum(our_pixels) / num_runs / once, (best[0], best[1]), (best[2], best[3]))


def print_rows(rows: list[Row]) -> None:
    table = Table("family", "runs as", "equal texts", "looks per record", "VIG", "VIC", box=None)
    for row in rows:
        faster = (f"{published / ours:.1f}x" for published, ours in (row.generate_seconds, row.correct_seconds))
        table.add_row(row.family, row.way, f"{row.num_equal} of {row.num_records}", f"{row.looks_per_record:.2f}", *faster)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
