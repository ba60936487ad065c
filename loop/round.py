"""One round, in order.

    shards ─► generate ─► correct ─► filter ─► select ─► train ─► evaluate ─► decide ─► swap ─► commit

| stage                     | consumes                        | produces                         | waits for               |
|---------------------------|---------------------------------|----------------------------------|-------------------------|
| generate, correct, filter | shards of tasks                 | one part of records per shard    | nothing: a pipeline     |
| select                    | accepted records                | part `selected`                  | every shard             |
| train                     | seed data and selected records  | a checkpoint, the candidate      | select                  |
| evaluate                  | held-out questions              | part `predictions`               | one engine's swap       |
| decide, swap              | predictions of both models      | the champion of the next round   | evaluate                |
| commit                    | all of the above                | the round                        | everything              |

A stage whose part or checkpoint is finished is not run again, and no engine is started for it: that is all there is to resuming. A
rejected candidate changes nothing but the record of its round. A stage begins with the first engine that serves its model, and the
others come over while it runs: all that it produces is pinned to that model. `swap` counts the seconds until that first engine serves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

import pyarrow as pa
import ray

from actors.engines.weights import weight_version
from actors.shards import Shard
from actors.training.checkpoint import RESULT_FILE
from actors.training.job import TrainingJob
from cluster.dispatch import Then
from loop.assembly import HeldOut, derived_seed, evenly
from loop.commits import Decision, FilterCount, RoundCommit, RoundState
from loop.house import House, Model
from loop.store import PartReceipt
from policies.acceptance import GeneratedStats, Verdict
from policies.instructions import plan_tasks
from policies.knowledge import count_first_words, is_knowledge, questions_of
from policies.metrics import correctness, count_reasons, distinct_n, mean_words, share
from policies.records import HeldOutQuestion, Prediction, Record, TrainingSample, to_table

_EVALUATION_CHUNK = 128
_STATS_SAMPLE = 200
"""Records that diversity is measured on: distinct-n falls with the number of texts, so it is taken over equally many."""

Predictions = dict[str, list[Prediction]]
"""`held_out/NAME` and `acceptance/NAME` -> one prediction per question."""


@dataclass
class RoundClock:
    """Wall-clock seconds of the stages."""

    started_at: float = field(default_factory=time.time)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def run_baseline(house: House) -> RoundCommit:
    """Round 0: the seed model is copied into the run, served, evaluated and committed as the first champion."""
    clock = RoundClock()
    model = house.adopt_base_model()
    predictions, part = evaluate(house, 0, model, clock)
    commit = RoundCommit(
        run_id=house.run_id, round=0, state=RoundState.BASELINE, epoch=house.store.epoch, started_at=clock.started_at,
        committed_at=time.time(), champion=model.version, champion_path=model.path,
        metrics=accuracies("accuracy", predictions), stage_seconds=clock.seconds, files=[*model.files, part.entry],
    )  # fmt: skip
    house.store.commit(commit)
    return commit


def run_round(house: House, index: int) -> RoundCommit:
    """Round `index` (from 1): everything from the unlabelled images to the commit record."""
    clock = RoundClock()
    champion = house.champion()
    shards = plan_shards(house, index)
    todo = [shard for shard in shards if house.store.finished_part(index, shard.name) is None]
    if todo:
        with clock.stage("swap"):
            house.serve(champion)
        with clock.stage("generate_correct_filter"):
            write_records(house, todo, len(shards) - len(todo))
    parts = [part for shard in shards if (part := house.store.finished_part(index, shard.name)) is not None]
    with clock.stage("select"):
        records, selected, selected_part = select(house, index, parts)
        assert {record.generator_weight_version for record in records} <= {champion.version}
    with clock.stage("train"):
        candidate, training, training_part = train(house, index, selected)
    predictions, predictions_part = evaluate(house, index, candidate, clock)
    with clock.stage("decide"):
        champion_predictions = house.champion_predictions()
        stats = generated_stats(selected)
        verdict = decide(house, champion_predictions, predictions, stats)
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
            **accuracies("accuracy", predictions if verdict.accepted else champion_predictions),
            **accuracies("candidate_accuracy", predictions),
            **asdict(stats),
            **training,
        },
        decision=Decision(accepted=verdict.accepted, reason=verdict.reason, numbers=verdict.numbers),
        stage_seconds=clock.seconds,
        files=[*(part.entry for part in parts), selected_part.entry, training_part.entry, *candidate.files, predictions_part.entry],
    )
    house.store.commit(commit)
    return commit


def write_records(house: House, todo: Sequence[Shard], num_done: int) -> None:
    """Generate, correct and filter the shards of the round that are still to do."""

    def submit(engine: Any, shard: Shard) -> ray.ObjectRef:
        return engine.correct.remote(shard, engine.generate.remote(shard))

    def judge(actor: Any, shard: Shard, corrected: ray.ObjectRef) -> ray.ObjectRef:
        return actor.filter.remote(shard, corrected)

    with house.progress.stage("generate, correct, filter", total=num_done + len(todo), unit="shards") as stage:
        stage.advance(num_done)
        for _, done in house.fleet.run(todo, submit, pinned=True, then=Then(house.filters, judge)):
            stage.advance(1, records=done.num_records, kept=done.num_accepted)


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


def select(house: House, index: int, parts: Sequence[PartReceipt]) -> tuple[list[Record], list[Record], PartReceipt]:
    """All records of the round, those it trains on, and the part that holds the latter."""
    records = [record for part in parts for record in house.store.read_records(part)]
    part = house.store.finished_part(index, "selected")
    if part is None:
        chosen = [record for record in house.policies.selection.select([r for r in records if r.accepted]) if record.trained_on]
        part = house.store.write_part(index, "selected", to_table(chosen))
    return records, house.store.read_records(part), part


def train(house: House, index: int, selected: list[Record]) -> tuple[Model, dict[str, float], PartReceipt]:
    """The candidate, what its training measured, and the part that says so."""
    name = f"round-{index:04d}"
    part = house.store.finished_part(index, "training")
    checkpoint = house.store.finished_checkpoint(name)
    if part is None or checkpoint is None:
        config = house.config.training
        seed = derived_seed(house.config.seed, index, "train")
        hyper = config.hyperparameters(len(house.seed_samples) + num_generated(house, selected))
        samples = training_set(house, index, selected, hyper.num_steps * hyper.batch_size)
        start = house.policies.start.start(house.base(), house.champion())
        folder = house.store.checkpoint_dir(name)
        job = TrainingJob(
            house.store.local_checkpoint(start.path), folder, samples, seed, hyper,
            house.store.steps_folder(name), config.checkpoint_steps,
        )  # fmt: skip
        with house.progress.stage("train", total=hyper.num_steps, unit="steps") as stage:
            result = house.train(job, stage)
        (folder / RESULT_FILE).unlink()  # it tells the time, and a committed file must not
        checkpoint = house.store.publish_checkpoint(folder, name)
        measured = {
            "train_loss": result.mean_loss,
            "train_final_loss": result.final_loss,
            "train_target_tokens": float(result.num_target_tokens),
        }
        part = house.store.write_json_part(index, "training", {"digest": result.digest, "metrics": measured, "losses": list(result.losses)})
    house.store.drop_steps(name)
    document = house.store.read_json_part(part)
    model = Model(weight_version(index, document["digest"]), checkpoint.path, document["digest"], tuple(checkpoint.files))
    return model, document["metrics"], part


def num_generated(house: House, selected: list[Record]) -> int:
    """Generated records that a training set of this round may draw from."""
    return sum(commit.counts["trained_on"] for commit in house.commits if commit.state is RoundState.ACCEPTED) + len(selected)


def training_set(house: House, index: int, selected: list[Record], num_samples: int) -> list[TrainingSample]:
    """Seed data and generated data as the mixing policy wants them; data of rejected rounds stays out. Image ids name their set."""
    history = [house.selected_records(commit) for commit in house.commits if commit.state is RoundState.ACCEPTED]
    generated = [[replace(record, image_id=house.routed_id(record)) for record in records] for records in [*history, selected]]
    return house.policies.mixing.mix(house.seed_samples, generated, num_samples, derived_seed(house.config.seed, index, "mix"))


def evaluate(house: House, index: int, model: Model, clock: RoundClock) -> tuple[Predictions, PartReceipt]:
    """Answers of a model, which is served unless they are there, to every held-out and acceptance question."""
    part = house.store.finished_part(index, "predictions")
    if part is None:
        with clock.stage("swap"):
            house.serve(model)
        with clock.stage("evaluate"):
            part = house.store.write_part(index, "predictions", answers(house))
    return read_predictions(house.store.read_part(part)), part


def answers(house: House) -> pa.Table:
    """What the served model says, a row per question, by set."""
    sets = {f"held_out/{one.name}": one for one in house.held_out} | {f"acceptance/{one.name}": one for one in house.acceptance}
    tasks = [(name, start) for name, one in sets.items() for start in range(0, len(one.questions), _EVALUATION_CHUNK)]

    def submit(engine: Any, task: tuple[str, int]) -> ray.ObjectRef:
        one = sets[task[0]]
        return engine.evaluate.remote(one.source, _chunk(one, task[1]), house.config.answer_max_new_tokens)

    answered: dict[tuple[str, int], list[Prediction]] = {}
    with house.progress.stage("evaluate", total=sum(len(one.questions) for one in sets.values()), unit="questions") as stage:
        for task, predictions in house.fleet.run(tasks, submit, pinned=True):
            assert {one.weight_version for one in predictions} == {house.fleet.weight_version}
            answered[task] = predictions
            stage.advance(len(predictions))
    return pa.Table.from_pylist([{"set": task[0], **asdict(prediction)} for task in tasks for prediction in answered[task]])


def _chunk(one: HeldOut, start: int) -> Sequence[HeldOutQuestion]:
    return one.questions[start : start + _EVALUATION_CHUNK]


def read_predictions(table: pa.Table) -> Predictions:
    """Predictions by set, in the order of the questions."""
    found: Predictions = {}
    for row in table.to_pylist():
        found.setdefault(row.pop("set"), []).append(Prediction(**row))
    return found


def decide(house: House, champion: Predictions, candidate: Predictions, stats: GeneratedStats) -> Verdict:
    """What the acceptance policy says, on the acceptance sets alone."""

    def flags(predictions: Predictions) -> dict[str, list[bool]]:
        return {name: [one.correct for one in given] for name, given in predictions.items() if name.startswith("acceptance/")}

    previous = [commit.metrics for commit in house.commits if "distinct_2" in commit.metrics]
    before = GeneratedStats(previous[-1]["distinct_2"], previous[-1]["mean_answer_words"]) if previous else None
    return house.policies.acceptance.decide(flags(champion), flags(candidate), stats, before)


def generated_stats(selected: Sequence[Record]) -> GeneratedStats:
    """Diversity and length of what a round trains on."""
    sample = selected[:: max(1, len(selected) // _STATS_SAMPLE)][:_STATS_SAMPLE]
    return GeneratedStats(distinct_n((f"{r.question} {r.answer}" for r in sample), 2), mean_words(r.answer for r in selected))


def counts_of(records: Sequence[Record], selected: Sequence[Record]) -> dict[str, int]:
    """Counts of a round, rejections by reason among them."""
    reasons = count_reasons(records)
    return {
        "generated": len(records),
        "accepted": sum(record.accepted for record in records),
        "trained_on": len(selected),
        "set_aside_images": len({record.image_id for record in records if "unreadable_image" in record.reasons}),
        **reasons,
    }


def filter_counts(parts: Iterable[PartReceipt]) -> list[FilterCount]:
    """What each filter saw and kept over all shards, in the order of the chain."""
    total: dict[str, list[int]] = {}
    for part in parts:
        for name, seen, kept in part.extra["filters"]:
            sums = total.setdefault(name, [0, 0])
            sums[0] += seen
            sums[1] += kept
    return [FilterCount(filter=name, seen=seen, kept=kept) for name, (seen, kept) in total.items()]


def accuracies(prefix: str, predictions: Predictions) -> dict[str, float]:
    """Exact accuracy per set: `PREFIX/NAME` for held-out sets, `PREFIX_acceptance/NAME` for acceptance sets."""
    found = {}
    for name, given in predictions.items():
        kind, _, short = name.partition("/")
        found[f"{prefix}/{short}" if kind == "held_out" else f"{prefix}_acceptance/{short}"] = share(one.correct for one in given)
    return found
