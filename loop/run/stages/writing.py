"""Writing the records of a round: the pipeline of generation, correction and filters, shard by shard.

The champion writes a round's records when the round begins. With `overlap: 1` the champion of one round earlier has written them ahead,
while that round's candidate trained. If that candidate was accepted, the records are stale, and `stale_records` decides:

| `stale_records` | what is trained on                                                     | its parts                       |
|-----------------|------------------------------------------------------------------------|---------------------------------|
| `keep`          | what the older champion wrote                                          | `records-NUMBER`                |
| `correct`       | its questions with answers that the champion gave, filtered again      | `records-NUMBER-corrected`      |
| `drop`          | what the champion writes about the same images                         | `records-NUMBER-renewed`        |

With `generation.mean_teacher_decay`, the mean teacher of a champion stands for it in all of this: it generates and corrects, and once the
champion changes, so does its mean teacher.

Which model writes which part follows from the commits alone, so a resumed round is the same whenever it was interrupted. Parts that were
replaced are set aside: the commit lists them, and nothing reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import ray

from actors.shards import Shard
from loop.run.contents import Run
from loop.run.models import Model, Models
from loop.run.stages.clock import RoundClock
from loop.run.stages.records import complete_parts, finished_parts
from loop.run.workers import Workers
from loop.setup.assembly import derived_seed, evenly
from loop.store.commits import RoundState
from loop.store.run_store import PartReceipt
from policies.generation.instructions import plan_tasks
from policies.generation.knowledge import count_first_words, is_knowledge, questions_of

_REVISIONS = {"correct": "corrected", "drop": "renewed"}
"""By `stale_records`, what the shards of its new parts are called."""
_OUTCOMES = {"keep": "kept", "correct": "corrected", "drop": "dropped"}


@dataclass(frozen=True)
class Writing:
    """Shards, and the model that writes their records."""

    shards: list[Shard]
    model: Model
    stale: dict[str, PartReceipt] = field(default_factory=dict)
    """Parts by shard name whose records the model corrects; empty where it generates."""


@dataclass(frozen=True)
class RoundRecords:
    """The records of a round."""

    parts: list[PartReceipt]
    """Those that count, in the order of shards."""
    generator: Model
    """The model that generated them."""
    set_aside: list[PartReceipt] = field(default_factory=list)
    """Parts that others have replaced."""
    stale: dict[str, int] = field(default_factory=dict)
    """Counts of records that an older model than the champion wrote, as a commit record has them."""

    @property
    def names(self) -> list[str]:
        """The names of all parts."""
        return [part.path.rpartition("/")[2].partition(".")[0] for part in (*self.parts, *self.set_aside)]


def round_records(run: Run, models: Models, workers: Workers, index: int, clock: RoundClock) -> RoundRecords:
    """The records of round `index`: what is finished of them, and what is written now.

    Raises:
        IncompleteRoundError: a shard is missing, or its part does not match the plan.
    """
    write = partial(_written, run, workers, clock=clock)
    first = planned(run, models, index)
    parts = write(first)
    newest, choice = models.writer(index, overlap=0), run.config.stale_records
    if first.model.version == newest.version:
        return RoundRecords(parts, first.model)
    stale = {f"stale_{_OUTCOMES[choice]}": sum(part.num_rows for part in parts)}
    if choice == "keep":
        return RoundRecords(parts, first.model, stale=stale)
    shards = [replace(shard, revision=_REVISIONS[choice]) for shard in first.shards]
    if choice == "drop":
        return RoundRecords(write(Writing(shards, newest)), newest, parts, stale)
    corrected = write(Writing(shards, newest, {shard.name: part for shard, part in zip(shards, parts, strict=True)}))
    return RoundRecords(corrected, first.model, parts, stale)


def planned(run: Run, models: Models, index: int) -> Writing:
    """The shards of round `index`, and the model that writes them first."""
    return Writing(plan_shards(run, index), models.writer(index, run.config.overlap))


def ahead_of(run: Run, models: Models, index: int) -> Writing | None:
    """What is to be written of the next round while round `index` trains; None if nothing is, or if no round follows."""
    states = [commit.state for commit in run.commits[1:]]
    ends = (run.policies.stop.stop([*states, state], run.config.rounds) for state in (RoundState.ACCEPTED, RoundState.REJECTED))
    if not run.config.overlap or all(ends):
        return None
    following = planned(run, models, index + 1)
    finished = finished_parts(run.store, following.shards)
    return following if len(finished) < len(following.shards) else None


def write_ahead(run: Run, workers: Workers, ahead: Writing, check: Callable[[], None]) -> None:
    """Write the records of a later round. `check` is called as shards begin and end, and may raise an error to end it."""
    finished = finished_parts(run.store, ahead.shards)
    write_records(workers, ahead, finished, check)


def _written(run: Run, workers: Workers, writing: Writing, clock: RoundClock) -> list[PartReceipt]:
    """The parts of shards in order, the missing ones written first."""
    finished = finished_parts(run.store, writing.shards)
    if len(finished) < len(writing.shards):
        with clock.stage("swap"):
            workers.serve(writing.model)
        workers.launch_trainer()
        with clock.stage("generate_correct_filter"):
            finished |= write_records(workers, writing, finished)
    return complete_parts(writing.shards, finished)


def write_records(
    workers: Workers, writing: Writing, finished: dict[str, PartReceipt], check: Callable[[], None] = lambda: None
) -> dict[str, PartReceipt]:
    """Generate, or take stale records, then correct and filter the unfinished shards; returns their parts by shard name.

    A shard's records stay in the object store, on the node of its engine, until the filter has written its part.
    """
    read_part = workers.run.store.read_part

    def submit(engine: Any, shard: Shard) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        check()
        if stale := writing.stale.get(shard.name):
            return engine.correct_records.options(num_returns=2).remote(shard, partial(read_part, stale))
        return engine.write_records.options(num_returns=2).remote(shard)

    todo = [shard for shard in writing.shards if shard.name not in finished]
    title = "correct, filter" if writing.stale else "generate, correct, filter"
    parts: dict[str, PartReceipt] = {}
    with workers.run.progress.stage(title, len(writing.shards), "shards", round=writing.shards[0].round) as stage:
        stage.advance(len(finished))
        with closing(workers.filters.after(workers.fleet, todo, submit)) as filtered:
            for shard, done in filtered:
                check()
                parts[shard.name] = done.part
                stage.advance(1, records=done.num_records, kept=done.num_accepted)
    return parts


def plan_shards(run: Run, index: int) -> list[Shard]:
    """The round's tasks, cut into shards. All tasks of an image are in the same shard."""
    generation = run.config.generation
    source = run.image_set(index)
    seed = derived_seed(run.config.seed, index, "tasks")
    first_word = count_first_words(questions_of(run.seed_samples)).draw if any(map(is_knowledge, generation.type_mix)) else None
    tasks = plan_tasks(source.image_ids(), generation.type_mix, generation.num_per_image, seed, run.policies.instructions, first_word)
    per_image = [tasks[start : start + generation.num_per_image] for start in range(0, len(tasks), generation.num_per_image)]
    num_shards = max(generation.num_shards, math.ceil(len(tasks) / generation.max_records_per_shard))
    return [
        Shard(index, number, derived_seed(run.config.seed, index, "shard", number), tuple(chain.from_iterable(images)), source)
        for number, images in enumerate(evenly(per_image, num_shards))
    ]
