"""One round, in order.

    shards ─► generate ─► correct ─► filter ─► deduplicate ─► select ─► train ─► evaluate ─► controls ─► decide ─► swap ─► commit

| stage                     | consumes                        | produces                         | waits for               |
|---------------------------|---------------------------------|----------------------------------|-------------------------|
| generate, correct, filter | shards of tasks                 | one part of records per shard    | nothing: a pipeline     |
| deduplicate               | keys of accepted records        | part `duplicates`                | every planned shard     |
| select                    | accepted records                | part `selected`                  | deduplicate             |
| train                     | seed data and selected records  | a checkpoint, the candidate      | select                  |
| write ahead, if `overlap` | shards of the next round        | records of the next round        | select, beside train    |
| evaluate                  | held-out questions              | part `predictions`               | one engine's swap       |
| controls, if configured   | as train and evaluate           | the same for each control        | evaluate                |
| decide                    | predictions of both models      | the champion of the next round   | evaluate                |
| average, if configured    | the accepted candidate          | a checkpoint, the mean teacher   | decide                  |
| swap                      | the mean teacher or champion    | engines that serve it            | one engine's swap       |
| commit                    | all of the above                | the round                        | everything              |

If a round selects no records, `on_empty_round` decides whether the run ends or the round is rejected without training.

Resuming reuses finished work: a stage whose part or checkpoint is finished is skipped, and no engine is started for it. A rejected
candidate changes nothing but the record of its round. A stage starts as soon as one engine serves its model, and the other engines
are swapped while it runs; all its output is pinned to that model. `swap` counts the seconds until the first engine serves.
Engines may sleep during training to free their memory for the trainer; the swap to the candidate wakes them. With `overlap: 1` they write
the next round meanwhile, and the swap to the candidate begins once both are done.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from loop.run.session import Session
from loop.run.stages.clock import RoundClock
from loop.run.stages.controls import run_controls
from loop.run.stages.deciding import decide, generated_stats
from loop.run.stages.deduplication import deduplicate, partly_compared
from loop.run.stages.empty import commit_empty_round
from loop.run.stages.evaluation import blind_sets, champion_predictions, evaluate, mean_scores
from loop.run.stages.image_check import check_images
from loop.run.stages.overlapping import train_and_write_ahead
from loop.run.stages.records import counts_of, filter_counts, record_counts, select
from loop.run.stages.training import next_writer
from loop.run.stages.writing import round_records
from loop.store.commits import Decision, RoundCommit, RoundState
from loop.store.duplicates import DUPLICATES
from loop.store.selected import SELECTED


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
    clock, busy_before = RoundClock(), workers.busy()
    champion = models.champion()
    written = round_records(run, models, workers, index, clock)
    parts = written.parts
    findings = check_images(run.store, index, record_counts(parts), [*written.names, DUPLICATES, SELECTED])
    with clock.stage("deduplicate"):
        duplicates = deduplicate(run, index, parts)
    with clock.stage("select"):
        judged = [*parts, *([duplicates] if duplicates else [])]
        records = record_counts(judged)
        assert set(records.weight_versions) <= {written.generator.version}
        selected, selected_part = select(run.store, run.policies.selection, index, parts, duplicates)
    if not len(selected):
        return commit_empty_round(run, champion, index, clock, records, [*judged, selected_part], written, workers, busy_before)
    if run.config.cluster.sleep_while_training:
        with clock.stage("sleep"):
            workers.sleep()
    trained, trained_controls = train_and_write_ahead(run, models, workers, index, selected, clock)
    candidate = trained.model
    predictions, predictions_part = evaluate(run, workers, index, candidate, clock)
    controls = run_controls(run, models, workers, index, selected, predictions, clock, trained_controls)
    with clock.stage("decide"):
        answered_before = champion_predictions(run)
        verdict = decide(run, index, answered_before, predictions, selected)
    winner = candidate if verdict.accepted else champion
    writer, writer_files = next_writer(run, models, workers, index, candidate, clock, accepted=verdict.accepted)
    with clock.stage("swap"):
        if workers.fleet.weight_version:
            workers.serve(writer)
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
        mean_teacher=None if writer == winner else writer.version,
        mean_teacher_path=None if writer == winner else writer.path,
        candidate=candidate.version,
        counts={**counts_of(records, len(selected)), **written.stale},
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
        idle=workers.idle_since(busy_before, clock.seconds["round"]),
        files=[
            *(part.entry for part in judged),
            selected_part.entry,
            trained.part.entry,
            *candidate.files,
            predictions_part.entry,
            *controls.files,
            *writer_files,
            *(part.entry for part in written.set_aside),
        ],
        findings=[*findings, *partly_compared(duplicates), *trained.findings],
        incidents=workers.take_incidents(),
    )
    run.store.commit(commit)
    return commit
