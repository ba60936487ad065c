"""A filter for embedded worlds: does the answer follow from the model's own description of the image?

It uses the grammar of the questions but not the truth: the model's description is parsed as a scene, on which the answering program is run.
A record whose answer contradicts the model's own description, or whose question that scene does not support, is rejected.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from loop.sources.worlds.grammar import Grammar, Premise
from loop.sources.worlds.grid import GridScene, GridThing
from policies.correction.methods import CorrectionPolicy
from policies.records import Reason, Record

SceneT = TypeVar("SceneT", bound=GridScene)
ThingT = TypeVar("ThingT", bound=GridThing)


class FollowsFromOwnDescription(ABC, Generic[SceneT]):
    """A filter policy that needs `describe: true` in the correction; a world says how its descriptions are read."""

    name = "follows_from_description"

    @property
    @abstractmethod
    def grammar(self) -> Grammar[SceneT]: ...

    @abstractmethod
    def described_scene(self, description: str) -> SceneT | None:
        """The scene in a description of the world's form, or None if it contains none."""

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        return [] if correction.describe else ["correction option describe: true"]

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        return [self._judged(record) for record in records]

    def _judged(self, record: Record) -> Reason | None:
        scene = self.described_scene(record.view_description)
        if scene is None:
            return Reason.ANSWERS_DISAGREE
        right = self.grammar.truth(scene, record.question)
        if right.premise is not Premise.TRUE:
            return Reason.NO_BASIS
        return None if right.answer == record.answer else Reason.ANSWERS_DISAGREE


def described_things(description: str, sentence: re.Pattern[str]) -> list[Mapping[str, str]]:
    """The named groups of every sentence, of which `position` is one; empty if anything else is said, or two things share a place."""
    found = [one.groupdict() for one in sentence.finditer(description)]
    distinct = len({one["position"] for one in found}) == len(found)
    return list(found) if distinct and sentence.sub("", description).strip() == "" else []


def in_reading_order(things: Sequence[ThingT]) -> tuple[ThingT, ...]:
    """The things as a scene lists them."""
    return tuple(sorted(things, key=lambda thing: thing.cell))
