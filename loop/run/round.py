"""One round, in order.

    shards ─► generate ─► correct ─► filter ─► deduplicate ─► select ─► train ─► evaluate ─► controls ─► decide ─► swap ─► commit

| stage                     | consumes                        | produces                         | waits for               |
|---------------------------|---------------------------------|----------------------------------|-------------------------|
| generate, correct, filter | shards of tasks                 | one part of records per shard    | nothing: a pipeline     |
| deduplicate               | keys of accepted records        | part `duplicates`                | every planned shard     |
| select                    | accepted records                | part `selected`                  | deduplicate             |
| train                     | seed data and selected records  | a checkpoint, the candidate      | select                  |
| evaluate                  | held-out questions              | part `predictions`               | one engine's swap       |
| controls, if configured   | as train and evaluate           | the same for each control        | evaluate                |
| decide, swap              | predictions of both models      | the champion of the next round   | evaluate                |
| commit                    | all of the above                | the round                        | everything              |

If a round selects no records, `on_empty_round` decides whether the run ends or the round is rejected without training.

Resuming reuses finished work: a stage whose part or checkpoint is finished is skipped, and no engine is started for it. A rejected
candidate changes nothing but the record of its round. A stage starts as soon as one engine serves its model, and the other engines
are swapped while it runs; all its output is pinned to that model. `swap` counts the seconds until the first engine serves.
Engines may sleep during training to free their memory for the trainer; the swap to the candidate wakes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import ray

from actors.shards import Shard
from loop.run.contents import Run
from loop.run.models import Models
from loop.run.session import Session
from loop.run.stages.clock import RoundClock
from loop.run.stages.controls import run_controls
from loop.run.stages.deciding import decide, generated_stats
from loop.run.stages.deduplication import deduplicate, partly_compared
from loop.run.stages.empty import commit_empty_round
from loop.run.stages.evaluation import blind_sets, champion_predictions, evaluate, mean_scores
from loop.run.stages.image_check import check_images
from loop.run.stages.records import complete_parts, counts_of, filter_counts, finished_parts, record_counts, select
from loop.run.stages.training import Trained, hyperparameters, train
from loop.run.stages.training_set import generated_so_far
from loop.run.workers import Workers
from loop.setup.assembly import derived_seed, evenly
from loop.store.commits import Decision, RoundCommit, RoundState
from loop.store.duplicates import DUPLICATES
from loop.store.run_store import PartReceipt
from loop.store.selected import SELECTED, SelectedRows
from policies.generation.instructions import plan_tasks
from policies.generation.knowledge import count_first_words, is_knowledge, questions_of


def run_baseline(session: Session) -> RoundCommit:
    """Round 0: copy the seed model into the run, serve and evaluate it, and commit it as the first champion."""
    run, clock = session.run, RoundClock()
    model = session.models.adopt(run.config.model_path)
    predictions, part = evaluate(run, session.workers, 0, model, clock)
    commit = RoundCommit(
        run_id=run.run_id, round=0, state=RoundState.BASELINE, epoch=run.store.epoch, started_at=clock.started_at,
        committed_at=time.time(), champion=model.version, champion_path=model.path,
        metrics=mean_scores("", run.sets, predictions), stage_seconds=clock.seconds, files=[*model.files, part.entry],
        findings=[*run.findings, *blind_sets(run.sets, predictions)], incidents=session.workers.take_incidents(),
    )  # fmt: skip
    run.store.commit(commit)
    return commit


def run_round(session: Session, index: int) -> RoundCommit:
    """Run round `index` (from 1), from the unlabelled images to the commit record."""
    run, models, workers = session.run, session.models, session.workers
    clock = RoundClock()
    champion = models.champion()
    shards = plan_shards(run, index)
    finished = finished_parts(run.store, shards)
    todo = [shard for shard in shards if shard.name not in finished]
    if todo:
        with clock.stage("swap"):
            workers.serve(champion)
        with clock.stage("generate_correct_filter"):
            finished |= write_records(workers, todo, len(finished))
    parts = complete_parts(shards, finished)
    findings = check_images(run.store, index, record_counts(parts), [*(shard.name for shard in shards), DUPLICATES, SELECTED])
    with clock.stage("deduplicate"):
        duplicates = deduplicate(run, index, parts)
    with clock.stage("select"):
        judged = [*parts, *([duplicates] if duplicates else [])]
        records = record_counts(judged)
        assert set(records.weight_versions) <= {champion.version}
        selected, selected_part = select(run.store, run.policies.selection, index, parts, duplicates)
    if not len(selected):
        return commit_empty_round(run, champion, index, clock, records, [*judged, selected_part], workers.take_incidents())
    if run.config.cluster.sleep_while_training:
        with clock.stage("sleep"):
            workers.sleep()
    with clock.stage("train"):
        trained = train_candidate(run, models, workers, index, selected)
    candidate = trained.model
    predictions, predictions_part = evaluate(run, workers, index, candidate, clock)
    controls = run_controls(run, models, workers, index, selected, predictions, clock)
    with clock.stage("decide"):
        answered_before = champion_predictions(run)
        verdict = decide(run, index, answered_before, predictions, selected)
    with clock.stage("swap"):
        winner = candidate if verdict.accepted else champion
        if workers.fleet.weight_version:
            workers.serve(winner)
    clock.seconds["round"] = time.time() - clock.started_at
    commit = RoundCommit(
        run_id=run.run_id,
        round=index,
        state=RoundState.ACCEPTED if verdict.accepted else RoundState.REJECTED,
        epoch=run.store.epoch,
        started_at=clock.started_at,
        committed_at=time.time(),
        champion=winner.version,
        champion_path=winner.path,
        candidate=candidate.version,
        counts=counts_of(records, len(selected)),
        filters=filter_counts(judged),
        metrics={
            **records.correctness,
            **mean_scores("", run.sets, predictions if verdict.accepted else answered_before),
            **mean_scores("candidate_", run.sets, predictions),
            **asdict(generated_stats(selected)),
            **trained.metrics,
            **controls.metrics,
        },
        decision=Decision(accepted=verdict.accepted, reason=verdict.reason, numbers=verdict.numbers),
        stage_seconds=clock.seconds,
        files=[
            *(part.entry for part in judged),
            selected_part.entry,
            trained.part.entry,
            *candidate.files,
            predictions_part.entry,
            *controls.files,
        ],
        findings=[*findings, *partly_compared(duplicates), *trained.findings],
        incidents=workers.take_incidents(),
    )
    run.store.commit(commit)
    return commit


def write_records(workers: Workers, todo: Sequence[Shard], num_done: int) -> dict[str, PartReceipt]:
    """Generate, correct and filter the unfinished shards of the round; returns their parts by shard name.

    A shard's records stay in the object store, on the node of its engine, until the filter has written its part.
    """

    def submit(engine: Any, shard: Shard) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        return engine.write_records.options(num_returns=2).remote(shard)

    parts: dict[str, PartReceipt] = {}
    with workers.run.progress.stage("generate, correct, filter", total=num_done + len(todo), unit="shards") as stage:
        stage.advance(num_done)
        with closing(workers.filters.after(workers.fleet, todo, submit)) as filtered:
            for shard, done in filtered:
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


def train_candidate(run: Run, models: Models, workers: Workers, index: int, selected: SelectedRows) -> Trained:
    """The candidate of a round, from the model that the start policy chooses."""
    start = run.policies.start.start(models.base(), models.champion())
    return train(run, models, workers, index, start, hyperparameters(run, selected), partial(generated_so_far, run, index, selected))
