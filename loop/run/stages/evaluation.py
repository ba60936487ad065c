"""Evaluation: a model's answers to the held-out and acceptance questions, and their scores."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from actors.images import ObjectOracle
from loop.errors import SchemaVersionError, UserError
from loop.run.contents import Run
from loop.run.models import Model
from loop.run.stages.clock import RoundClock
from loop.run.workers import Workers
from loop.scoring.run_judge import judge_of
from loop.setup.assembly import HeldOut
from loop.store.commits import Finding, RoundCommit, champion_commit
from loop.store.run_store import PartReceipt
from policies.acceptance.rules import Answered
from policies.answers.yes_no import NO, parse_yes_no
from policies.metrics import mean_words, says_yes, share
from policies.records import Prediction, RecordSchemaError
from policies.scoring.answer_metrics import Judge
from policies.scoring.predictions import PREDICTION_SCHEMA_VERSION, Predictions, from_table, prediction_version, to_table

log = logging.getLogger(__name__)

_EVALUATION_CHUNK = 128
_JUDGE_FOLDER = "judge"
"""Subfolder of the run for the judge's replies."""


def evaluate(
    run: Run, workers: Workers, index: int, model: Model, clock: RoundClock, name: str = "predictions"
) -> tuple[Predictions, PartReceipt]:
    """A model's answers to all held-out and acceptance questions, stored as the part `name`. Serves the model unless the part exists."""
    part = run.store.finished_part(index, name)
    if part is None:
        with clock.stage("swap"):
            workers.serve(model)
        with clock.stage("evaluate"):
            predictions = judged(run, answers(run, workers))
            part = run.store.write_part(index, name, to_table(predictions, {name: one.metric_name for name, one in run.sets.items()}))
    predictions, _ = from_table(run.store.read_part(part))
    return predictions, part


def answers(run: Run, workers: Workers) -> Predictions:
    """The served model's answers, one prediction per question. Predictions for a judge to score have no score yet."""
    sets = run.sets
    tasks = [(name, start) for name, one in sets.items() for start in range(0, len(one.questions), _EVALUATION_CHUNK)]

    def submit(engine: Any, task: tuple[str, int]) -> ray.ObjectRef:
        one = sets[task[0]]
        chunk = one.questions[task[1] : task[1] + _EVALUATION_CHUNK]
        return engine.evaluate.remote(one.source, chunk, run.config.answer_max_new_tokens, one.metric)

    answered: dict[tuple[str, int], list[Prediction]] = {}
    with run.progress.stage("evaluate", total=sum(len(one.questions) for one in sets.values()), unit="questions") as stage:
        for task, predictions in workers.fleet.run(tasks, submit):
            assert {one.weight_version for one in predictions} == {workers.fleet.weight_version}
            answered[task] = predictions
            stage.advance(len(predictions))
    return {name: [prediction for task in tasks if task[0] == name for prediction in answered[task]] for name in sets}


def judged(run: Run, predictions: Predictions) -> Predictions:
    """The predictions, scored by the judge for sets with a judge metric; the score is None if the judge gave no verdict."""
    found = dict(predictions)
    for name, one in run.sets.items():
        if not isinstance(one.metric, Judge):
            continue
        asked = [(question, prediction.answer) for question, prediction in zip(one.questions, predictions[name], strict=True)]
        with run.progress.stage(f"judge {one.name}", total=len(asked) * len(one.metric.looks), unit="reviews") as stage:
            scores = judge_of(one.metric).scores(run.store.storage.workspace(_JUDGE_FOLDER), asked, stage)
        found[name] = [replace(prediction, score=score) for prediction, score in zip(predictions[name], scores, strict=True)]
        if num_missing := scores.count(None):
            log.warning("the judge gave no verdict on %d of %d answers to %s: they are left out", num_missing, len(scores), name)
    return found


def champion_predictions(run: Run) -> Predictions:
    """The champion's answers to the held-out questions, from the round that trained it."""
    return _committed_predictions(run, champion_commit(run.commits))


def seed_predictions(run: Run) -> Predictions:
    """The seed model's answers to the held-out questions."""
    return _committed_predictions(run, run.commits[0])


def _committed_predictions(run: Run, commit: RoundCommit) -> Predictions:
    file = commit.file("predictions.parquet")
    return stored_predictions(file.path, run.store.read_part(file), run.sets)


def stored_predictions(path: str, table: pa.Table, sets: Mapping[str, HeldOut]) -> Predictions:
    """The predictions of an earlier round, from its part at `path`, scored with the current metrics of the sets.

    Raises:
        SchemaVersionError: the part has an unsupported version.
        UserError: a set was scored by another metric at the time.
    """
    try:
        predictions, metrics = from_table(table)
    except RecordSchemaError as error:
        raise SchemaVersionError(path, prediction_version(table), PREDICTION_SCHEMA_VERSION) from error
    for name, one in sets.items():
        if one.yes_no and metrics[name] == "exact":  # a run from before metrics were introduced: score its answers again
            pairs = zip(one.questions, predictions[name], strict=True)
            predictions[name] = [replace(given, score=one.metric.score(question, given.answer)) for question, given in pairs]
        elif metrics[name] != one.metric_name:
            raise UserError(
                f"{path}: {name} was scored by the metric {metrics[name]}, and its data ask for {one.metric_name} now; "
                "restore the data, or start a new run"
            )
    return predictions


def mean_scores(prefix: str, sets: Mapping[str, HeldOut], predictions: Predictions) -> dict[str, float]:
    """Mean score per set, 0..1: `PREFIXaccuracy/NAME` for held-out sets and `PREFIXaccuracy_acceptance/NAME` for acceptance sets, with the
    measure of the set's metric in place of `accuracy`. Answers without a verdict of the judge are left out."""
    found = {}
    for name, one in sets.items():
        scores = [prediction.score for prediction in predictions[name] if prediction.score is not None]
        key = f"{prefix}{one.metric.measure}" + ("" if name.startswith("held_out/") else "_acceptance")
        found[f"{key}/{one.name}"] = math.fsum(scores) / len(scores)
    return found


def blind_sets(sets: Mapping[str, HeldOut], predictions: Predictions) -> list[Finding]:
    """Findings about sets on which the seed model answers everything right or everything wrong: they say little about a candidate."""
    found = []
    for name, one in sets.items():
        scores = {prediction.score for prediction in predictions[name]}
        if len(scores) == 1 and (score := scores.pop()) in (0.0, 1.0):
            question, prediction = one.questions[0], predictions[name][0]
            message = (
                f"the seed model scores {score:g} on every question of {name} by the metric {one.metric_name}: the set cannot show what "
            )
            message += "a candidate is worth; take " + ("harder questions" if score else "another metric or easier questions")
            example = f"{question.question!r} was answered {prediction.answer[:80]!r}; the reference is {question.answer[:80]!r}"
            found.append(Finding(kind="blind_set", count=len(one.questions), message=message, example=example))
    return found


def answered(sets: Sequence[HeldOut], predictions: Predictions) -> Answered:
    """What the acceptance policy sees of a model: its answers to the acceptance sets only. Hallucinations are derived from the stored
    answers, so they are not stored themselves."""
    given = {f"acceptance/{one.name}": (one, predictions[f"acceptance/{one.name}"]) for one in sets}
    return Answered(
        scores={name: [prediction.score for prediction in predictions] for name, (_, predictions) in given.items()},
        measures={name: one.metric.measure for name, (one, _) in given.items()},
        hallucinated={name: flags for name, (one, predictions) in given.items() if (flags := _hallucinated(one, predictions))},
        yes_share={name: share(says_yes(each.answer) for each in predictions) for name, (one, predictions) in given.items() if one.yes_no},
        mean_words=mean_words(prediction.answer for _, predictions in given.values() for prediction in predictions),
    )


def _hallucinated(one: HeldOut, predictions: Sequence[Prediction]) -> list[bool | None]:
    """For each answer, whether it mentions something absent from the image; empty if the set cannot tell."""
    pairs = list(zip(one.questions, predictions, strict=True))
    if one.yes_no:
        return [says_yes(given.answer) if parse_yes_no(question.answer) == NO else None for question, given in pairs]
    source = one.source
    if isinstance(source, ObjectOracle):
        return [source.names_absent_object(question.image_id, question.question, given.answer) for question, given in pairs]
    return []
