"""A filter for this world: does the answer follow from the model's own description of the image?

It uses the grammar of the questions but not the truth: the model's description is parsed as a scene, on which the answering program is run.
A record whose answer contradicts the model's own description, or whose question that scene does not support, is rejected. Named in a config
as `loop.sources.shapes.consistency:FollowsFromDescription`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from loop.sources.shapes.questions import Premise, truth
from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, SIZES, Scene, Thing
from policies.correction.methods import CorrectionPolicy
from policies.records import Reason, Record

_SENTENCE = re.compile(
    rf"There is an? (?P<size>{'|'.join(SIZES)}) (?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})"
    rf" at the (?P<position>{'|'.join(POSITIONS)})\."
)


class FollowsFromDescription:
    """Filter policy `follows_from_description`; needs `describe: true` in the correction."""

    name = "follows_from_description"

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        return [] if correction.describe else ["correction option describe: true"]

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        return [_judged(record) for record in records]


def described_scene(description: str) -> Scene | None:
    """The scene in a description of the form of `questions.description`, or None if it contains none."""
    found = _SENTENCE.finditer(description)
    things = [Thing(POSITIONS.index(one["position"]), one["shape"], one["color"], one["size"]) for one in found]
    consistent = len({thing.cell for thing in things}) == len(things) and _SENTENCE.sub("", description).strip() == ""
    return Scene("described", 0.0, tuple(sorted(things, key=lambda thing: thing.cell)), 0) if things and consistent else None


def _judged(record: Record) -> Reason | None:
    scene = described_scene(record.view_description)
    if scene is None:
        return Reason.ANSWERS_DISAGREE
    right = truth(scene, record.question)
    if right.premise is not Premise.TRUE:
        return Reason.NO_BASIS
    return None if right.answer == record.answer else Reason.ANSWERS_DISAGREE
