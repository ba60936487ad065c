"""One round, in order.

    shards ─► generate ─► correct ─► filter ─► select ─► train ─► evaluate ─► controls ─► decide ─► swap ─► commit

| stage                     | consumes                        | produces                         | waits for               |
|---------------------------|---------------------------------|----------------------------------|-------------------------|
| generate, correct, filter | shards of tasks                 | one part of records per shard    | nothing: a pipeline     |
| select                    | accepted records                | part `selected`                  | every planned shard     |
| train                     | seed data and selected records  | a checkpoint, the candidate      | select                  |
| evaluate                  | held-out questions              | part `predictions`               | one engine's swap       |
| controls, where asked for | as train and evaluate           | the same of each control         | evaluate                |
| decide, swap              | predictions of both models      | the champion of the next round   | evaluate                |
| commit                    | all of the above                | the round                        | everything              |

A round that selects nothing ends the run, or is rejected without a training, as `on_empty_round` says.

A stage whose part or checkpoint is finished is not run again, and no engine is started for it: that is all there is to resuming. A
rejected candidate changes nothing but the record of its round. A stage begins with the first engine that serves its model, and the
others come over while it runs: all that it produces is pinned to that model. `swap` counts the seconds until that first engine serves.
Engines may sleep while the candidate is trained, so that the trainer has their memory; the swap to the candidate wakes them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import ray

from actors.shards import Shard
from cluster.fleet.dispatch import Then
from loop.run.house import House, Model
from loop.run.stages.clock import RoundClock
from loop.run.stages.controls import run_controls
from loop.run.stages.deciding import decide, generated_stats
from loop.run.stages.empty import settle_empty
from loop.run.stages.evaluation import blind_sets, evaluate, mean_scores, sets_of
from loop.run.stages.reading import check_images
from loop.run.stages.records import counts_of, filter_counts, finished_parts, select, whole
from loop.run.stages.training import hyperparameters, train, training_findings, training_set
from loop.setup.assembly import derived_seed, evenly
from loop.store.commits import Decision, RoundCommit, RoundState
from loop.store.run_store import PartReceipt
from policies.generation.instructions import plan_tasks
from policies.generation.knowledge import count_first_words, is_knowledge, questions_of
from policies.metrics import correctness
from policies.records import Record


def run_baseline(house: House) -> RoundCommit:
    """Round 0: the seed model is copied into the run, served, evaluated and committed as the first champion."""
    clock = RoundClock()
    model = house.adopt_base_model()
    predictions, part = evaluate(house, 0, model, clock)
    commit = RoundCommit(
        run_id=house.run_id, round=0, state=RoundState.BASELINE, epoch=house.store.epoch, started_at=clock.started_at,
        committed_at=time.time(), champion=model.version, champion_path=model.path,
        metrics=mean_scores("", sets_of(house), predictions), stage_seconds=clock.seconds, files=[*model.files, part.entry],
        findings=[*house.findings, *blind_sets(sets_of(house), predictions)],
    )  # fmt: skip
    house.store.commit(commit)
    return commit


def run_round(house: House, index: int) -> RoundCommit:
    """Round `index` (from 1): everything from the unlabelled images to the commit record."""
    clock = RoundClock()
    champion = house.champion()
    shards = plan_shards(house, index)
    finished = finished_parts(house.store, shards)
    todo = [shard for shard in shards if shard.name not in finished]
    if todo:
        with clock.stage("swap"):
            house.serve(champion)
        with clock.stage("generate_correct_filter"):
            finished |= write_records(house, todo, len(finished))
    parts = whole(shards, finished)
    with clock.stage("select"):
        records, selected, selected_part = select(house.store, house.policies.selection, index, parts)
        findings = check_images(house, index, records, [*(shard.name for shard in shards), "selected"])
        assert {record.generator_weight_version for record in records} <= {champion.version}
    if not selected:
        return settle_empty(house, index, clock, records, [*parts, selected_part])
    if house.config.cluster.sleep_while_training:
        with clock.stage("sleep"):
            house.rest()
    with clock.stage("train"):
        candidate, training, training_part = train_candidate(house, index, selected)
    predictions, predictions_part = evaluate(house, index, candidate, clock)
    controls = run_controls(house, index, selected, predictions, clock)
    with clock.stage("decide"):
        champion_predictions = house.champion_predictions()
        verdict = decide(house, index, champion_predictions, predictions, selected)
    with clock.stage("swap"):
        winner = candidate if verdict.accepted else champion
        if house.fleet.weight_version:
            house.serve(winner)
    clock.seconds["round"] = time.time() - clock.started_at
    commit = RoundCommit(
        run_id=house.run_id,
        round=index,
        state=RoundState.ACCEPTED if verdict.accepted else RoundState.REJECTED,
        epoch=house.store.epoch,
        started_at=clock.started_at,
        committed_at=time.time(),
        champion=winner.version,
        champion_path=winner.path,
        candidate=candidate.version,
        counts=counts_of(records, selected),
        filters=filter_counts(parts),
        metrics={
            **correctness(records),
            **mean_scores("", sets_of(house), predictions if verdict.accepted else champion_predictions),
            **mean_scores("candidate_", sets_of(house), predictions),
            **asdict(generated_stats(selected)),
            **training,
            **controls.metrics,
        },
        decision=Decision(accepted=verdict.accepted, reason=verdict.reason, numbers=verdict.numbers),
        stage_seconds=clock.seconds,
        files=[
            *(part.entry for part in parts),
            selected_part.entry,
            training_part.entry,
            *candidate.files,
            predictions_part.entry,
            *controls.files,
        ],
        findings=[*findings, *training_findings(house, training_part)],
    )
    house.store.commit(commit)
    return commit


def write_records(house: House, todo: Sequence[Shard], num_done: int) -> dict[str, PartReceipt]:
    """Generate, correct and filter the shards of the round that are still to do; their parts, by the names of the shards."""

    def submit(engine: Any, shard: Shard) -> ray.ObjectRef:
        return engine.correct.remote(shard, engine.generate.remote(shard))

    def judge(actor: Any, shard: Shard, corrected: ray.ObjectRef) -> ray.ObjectRef:
        return actor.filter.remote(shard, corrected)

    parts: dict[str, PartReceipt] = {}
    with house.progress.stage("generate, correct, filter", total=num_done + len(todo), unit="shards") as stage:
        stage.advance(num_done)
        for shard, done in house.fleet.run(todo, submit, pinned=True, then=Then(house.filters, judge)):
            parts[shard.name] = done.part
            stage.advance(1, records=done.num_records, kept=done.num_accepted)
    return parts


def plan_shards(house: House, index: int) -> list[Shard]:
    """The round's tasks, cut into shards between images."""
    generation = house.config.generation
    source = house.image_set(index)
    seed = derived_seed(house.config.seed, index, "tasks")
    first_word = count_first_words(questions_of(house.seed_samples)).draw if any(map(is_knowledge, generation.type_mix)) else None
    tasks = plan_tasks(source.image_ids(), generation.type_mix, generation.num_per_image, seed, house.policies.instructions, first_word)
    per_image = [tasks[start : start + generation.num_per_image] for start in range(0, len(tasks), generation.num_per_image)]
    return [
        Shard(index, number, derived_seed(house.config.seed, index, "shard", number), tuple(chain.from_iterable(images)), source)
        for number, images in enumerate(evenly(per_image, generation.num_shards))
    ]


def train_candidate(house: House, index: int, selected: list[Record]) -> tuple[Model, dict[str, float], PartReceipt]:
    """The candidate, what its training measured, and the part that says so."""
    start = house.policies.start.start(house.base(), house.champion())
    hyper = hyperparameters(house, selected)
    return train(house, index, start, hyper, lambda: training_set(house, index, selected, hyper.num_samples))
