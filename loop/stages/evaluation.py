"""Evaluation: what a model answers to the held-out and acceptance questions, and how right that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from actors.images import ObjectOracle
from loop.assembly import HeldOut
from loop.stages.clock import RoundClock
from loop.store import PartReceipt
from policies.acceptance import Answered
from policies.metrics import mean_words, says_yes, share
from policies.records import HeldOutQuestion, Prediction

if TYPE_CHECKING:
    from loop.house import House, Model

_EVALUATION_CHUNK = 128

Predictions = dict[str, list[Prediction]]
"""`held_out/NAME` and `acceptance/NAME` -> one prediction per question."""


def evaluate(house: House, index: int, model: Model, clock: RoundClock, name: str = "predictions") -> tuple[Predictions, PartReceipt]:
    """Answers of a model, which is served unless they are there, to every held-out and acceptance question; kept as the part `name`."""
    part = house.store.finished_part(index, name)
    if part is None:
        with clock.stage("swap"):
            house.serve(model)
        with clock.stage("evaluate"):
            part = house.store.write_part(index, name, answers(house))
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


def accuracies(prefix: str, predictions: Predictions) -> dict[str, float]:
    """Accuracy per set: `PREFIX/NAME` for held-out sets, `PREFIX_acceptance/NAME` for acceptance sets."""
    found = {}
    for name, given in predictions.items():
        kind, _, short = name.partition("/")
        found[f"{prefix}/{short}" if kind == "held_out" else f"{prefix}_acceptance/{short}"] = share(one.correct for one in given)
    return found


def answered(sets: Sequence[HeldOut], predictions: Predictions) -> Answered:
    """What the acceptance policy sees of a model: its answers to the acceptance sets alone. Hallucinations are told by the sets, of
    answers that are stored; so nothing of them needs to be."""
    given = {f"acceptance/{one.name}": (one, predictions[f"acceptance/{one.name}"]) for one in sets}
    return Answered(
        correct={name: [prediction.correct for prediction in predictions] for name, (_, predictions) in given.items()},
        hallucinated={name: flags for name, (one, predictions) in given.items() if (flags := _hallucinated(one, predictions))},
        yes_share={name: share(says_yes(each.answer) for each in predictions) for name, (one, predictions) in given.items() if one.yes_no},
        mean_words=mean_words(prediction.answer for _, predictions in given.values() for prediction in predictions),
    )


def _hallucinated(one: HeldOut, predictions: Sequence[Prediction]) -> list[bool | None]:
    """Of each answer whether it tells of something that is not there; empty where the set cannot say of any."""
    pairs = list(zip(one.questions, predictions, strict=True))
    if one.yes_no:
        return [None if says_yes(question.answer) else says_yes(prediction.answer) for question, prediction in pairs]
    source = one.source
    if isinstance(source, ObjectOracle):
        return [source.names_absent_object(question.image_id, question.question, given.answer) for question, given in pairs]
    return []
